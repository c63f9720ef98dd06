"""What may stand for what: a small list of a shop's everyday words, and a shop's own from a file.

The file has the lines that search engines read: `sofa, couch, settee` says that each may stand for the others,
`inch => in` that only the left may become the right; `#` begins a comment.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from recft.data.spans import Span, clusters, is_paired, spans
from recft.errors import DataError, problem

__all__ = ["Words", "built_in", "parse_words", "read_words"]

# Only words that mean the same wherever a shop uses them; where one of them means other things too, it is not
# on the left. Two characters or more in Chinese: one alone is most often a part of another word.
_BUILT_IN = """
# units
inch, inches
inch, inches => in
centimetre, centimeter, centimetres, centimeters => cm
millimetre, millimeter, millimetres, millimeters => mm
kilogram, kilo, kilograms, kilos => kg
gram, grams => g
litre, liter, litres, liters => l
ounce, ounces => oz
pounds => lbs
pieces => pcs
英寸, 吋 => 寸
厘米, 公分
厘米 => cm
毫米 => mm
公斤, 千克
毫升 => ml
平方米, 平米

# sizes
extra large => xl
big, large
small, little
tiny, mini
huge, giant
oversized, oversize
大码 => 大号
小码 => 小号
中号 => M码
加大, 特大
迷你, 小型

# colours
grey, gray
purple, violet
beige => cream
navy => dark blue
burgundy => wine red
turquoise, aqua
multicoloured, multicolored, colourful, colorful
colour, color
colours, colors
黑色 => 黑
白色 => 白
红色 => 红
咖啡色, 棕色
深蓝, 藏青
天蓝, 浅蓝
酒红, 暗红
彩色, 多色

# things
sofa, couch, settee
trousers, pants
jumper, sweater, pullover
trainers, sneakers
rucksack, backpack
handbag, purse
flashlight => torch
mobile phone, cell phone, smartphone
laptop, notebook computer
television => tv
fridge, refrigerator
faucet => tap
trash can => bin
duvet, comforter
rug, carpet
cup, mug
headphones, headset
earphones, earbuds
charger, power adapter
cable, cord
t-shirt, tee shirt => tee
spectacles => glasses
perfume, fragrance
nappies, diapers
pram, stroller
gift => present
手机壳, 手机套, 保护壳
手机, 智能手机
笔记本电脑, 手提电脑
电脑, 计算机
电视, 电视机
冰箱, 电冰箱
充电宝, 移动电源
数据线, 充电线
优盘, U盘, 闪存盘
打印机, 列印机
墨盒, 墨水盒
连衣裙 => 裙子
卫衣, 套头衫
毛衣, 针织衫
运动鞋, 球鞋
双肩包, 背包, 书包
手提包, 手袋
行李箱, 拉杆箱
椅子, 座椅
杯子, 水杯
保温杯, 保温壶
洗发水, 洗发露
沐浴露, 沐浴液
洗面奶, 洁面乳
纸巾, 抽纸
自行车, 单车
番茄, 西红柿
土豆, 马铃薯
零食, 小吃

# what is said of things
cheap, inexpensive, affordable
brand new => new
wireless, cordless
waterproof, water resistant
foldable, folding, collapsible
kids, children
women's => ladies'
men's => gents'
lightweight, light weight
便宜, 实惠
新款, 新品
防水 => 防泼水
折叠, 可折叠
便携, 随身
儿童, 小孩
女士, 女款, 女式
男士, 男款, 男式
婴儿, 宝宝
轻便, 轻巧
加厚, 厚款
包邮, 免运费
正品, 真品
"""


@dataclass(frozen=True, eq=False)
class Words:
    """What may stand for what.

    Attributes:
        table: folded word -> what may stand in its place, in the order given.
    """

    table: Mapping[str, tuple[str, ...]]

    @functools.cached_property
    def longest(self) -> int:
        """Units of the longest known word."""
        return max((len(_units(word)) for word in self.table), default=0)

    def found_in(self, text: str) -> list[tuple[int, int, tuple[str, ...]]]:
        """Every known word of a text, from left to right, the longest first: start, end, what may stand there.

        >>> Words({"手机": ("电话",), "手机 壳": ("x",), "壳": ("套",)}).found_in("红手机壳")
        [(1, 3, ('电话',)), (3, 4, ('套',))]
        """
        units, found, place = _units(text), [], 0
        while place < len(units):
            start = units[place][0]
            for last in range(min(place + self.longest, len(units)) - 1, place - 1, -1):
                end = units[last][1]
                if others := self.table.get(_folded(text[start:end])):
                    found.append((start, end, others))
                    place = last
                    break
            place += 1
        return found


def _units(text: str) -> list[Span]:
    """Where a word may begin and end: words of letters, and each character of Chinese."""
    found: list[Span] = []
    for start, end in spans(text):
        parts = clusters(text[start:end])
        for part in parts if is_paired(parts[0]) else [text[start:end]]:
            found.append((start, start + len(part)))
            start += len(part)
    return found


def _folded(word: str) -> str:
    return " ".join(word.casefold().split())


@functools.cache
def built_in() -> Words:
    """The house's own list."""
    return Words(parse_words(_BUILT_IN.splitlines(), "the built-in words"))


def read_words(path: Path | str) -> Words:
    """A shop's own words over the built-in ones: what the file says of a word replaces what the list says.

    Raises:
        DataError: the file cannot be read, or a line says nothing.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            problem(
                str(path),
                f"cannot be read ({error})",
                "a UTF-8 text with lines such as `sofa, couch`",
                "correct the path, or save it as UTF-8",
            )
        ) from error
    return Words({**built_in().table, **parse_words(lines, str(path))})


def parse_words(lines: Iterable[str], place: str) -> dict[str, tuple[str, ...]]:
    """Folded word -> alternatives, from lines as the module describes them.

    >>> parse_words(["Sofa, couch", "inch => in  # short"], "x")
    {'sofa': ('couch',), 'couch': ('Sofa',), 'inch': ('in',)}

    Raises:
        DataError: a line with one word, or with an empty side.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        said = line.partition("#")[0].strip()
        if not said:
            continue
        left, arrow, right = said.partition("=>")
        words = _listed(left)
        others = _listed(right) if arrow else words
        if not words or not others or (not arrow and len(words) < 2):
            raise DataError(
                problem(
                    f"{place}: line {number}",
                    repr(said),
                    "words parted by commas, two or more, or `word => other`",
                    "complete the line, or take it out",
                )
            )
        for word in words:
            folded = _folded(word)
            units = _units(folded)
            if not units or (units[0][0], units[-1][1]) != (0, len(folded)):
                raise DataError(
                    problem(
                        f"{place}: line {number}",
                        repr(word),
                        "a word that is looked for begins and ends with a letter, a digit or an emoji",
                        "leave the sign out, or put the word on the right of =>",
                    )
                )
            known = found.setdefault(folded, [])
            known += [other for other in others if other.casefold() != folded and other not in known]
    return {word: tuple(others) for word, others in found.items() if others}


def _listed(side: str) -> list[str]:
    return [" ".join(word.split()) for word in re.split("[,，、]", side) if word.strip()]
