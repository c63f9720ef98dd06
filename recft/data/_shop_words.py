"""What the made shop is made of: product kinds, and the words that the shop and its customers use for them.

The skeleton (`KINDS`) is shared; `ENGLISH` and `CHINESE` hold the words. All brands and product lines are invented.
The shop writes line names and abbreviations, customers say what a thing is for: that gap is what tuning closes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CHINESE", "ENGLISH", "KINDS", "METALS", "Kind", "Names", "Words"]


@dataclass(frozen=True)
class Kind:
    """A kind of product: its family, what it can be made of and meant for, usual price and sizes."""

    family: str
    materials: tuple[str, ...]
    uses: tuple[str, ...]
    price: float
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Names:
    """How the shop writes a thing, and how customers say it."""

    shop: tuple[str, ...]
    asked: tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """One language of the shop.

    `noise` are words that titles carry without meaning; `queries` are patterns over {kind}, {use}, {material},
    {brand} and {colour}.
    """

    kinds: Mapping[str, Names]
    materials: Mapping[str, Names]
    uses: Mapping[str, Names]
    colours: Mapping[str, Names]
    brands: Mapping[str, Names]
    families: Mapping[str, str]
    noise: tuple[str, ...]
    queries: tuple[str, ...]
    wide: bool = False


METALS = ("steel", "aluminium")
"""What a customer who says `metal` means."""

_CUPS = ("0.25L", "0.35L", "0.5L", "0.75L", "1L")
_BODY = ("S", "M", "L", "XL")

KINDS: Mapping[str, Kind] = {
    "bottle": Kind(
        "drink", ("steel", "aluminium", "plastic"), ("camping", "cycling", "office", "kids", "winter"), 22, _CUPS
    ),
    "mug": Kind("drink", ("steel", "ceramic", "plastic"), ("camping", "coffee", "office", "kids"), 12, _CUPS[:3]),
    "kettle": Kind("drink", ("steel", "aluminium"), ("camping", "coffee", "kitchen"), 38, ("0.8L", "1L", "1.7L")),
    "filter": Kind("drink", ("steel", "ceramic", "cotton"), ("coffee", "camping", "office"), 16, ("2 cup", "4 cup")),
    "grinder": Kind("cook", ("steel", "ceramic", "wood"), ("coffee", "kitchen", "camping"), 34),
    "pan": Kind(
        "cook", ("steel", "aluminium", "ceramic"), ("kitchen", "camping", "baking"), 36, ("20cm", "24cm", "28cm")
    ),
    "pot": Kind("cook", ("steel", "aluminium", "ceramic"), ("kitchen", "camping", "garden"), 42, ("1L", "2L", "5L")),
    "knife": Kind("cook", ("steel", "ceramic", "wood"), ("kitchen", "camping", "fishing"), 29, ("8cm", "15cm", "20cm")),
    "board": Kind("cook", ("wood", "plastic"), ("kitchen", "baking", "fishing"), 19, ("S", "M", "L")),
    "bowl": Kind(
        "cook", ("steel", "ceramic", "wood", "plastic"), ("baking", "kitchen", "dog", "kids"), 14, ("S", "M", "L")
    ),
    "lunchbox": Kind("cook", ("steel", "plastic", "wood"), ("office", "kids", "camping"), 18, ("0.8L", "1.2L")),
    "apron": Kind("wear", ("cotton", "leather"), ("kitchen", "baking", "garden", "kids"), 24, _BODY),
    "gloves": Kind("wear", ("leather", "wool", "cotton"), ("garden", "winter", "cycling", "baking"), 21, _BODY),
    "hat": Kind("wear", ("wool", "cotton"), ("winter", "garden", "fishing", "kids"), 19, _BODY[:3]),
    "socks": Kind("wear", ("wool", "cotton"), ("winter", "cycling", "camping", "kids"), 13, _BODY[:3]),
    "jacket": Kind("wear", ("wool", "plastic", "cotton"), ("winter", "cycling", "fishing", "dog"), 89, _BODY),
    "backpack": Kind(
        "bag", ("cotton", "leather", "plastic"), ("camping", "cycling", "office", "kids"), 64, ("15L", "25L", "45L")
    ),
    "pouch": Kind("bag", ("cotton", "leather", "plastic"), ("cycling", "office", "fishing", "dog"), 17, ("S", "M")),
    "blanket": Kind("rest", ("wool", "cotton"), ("camping", "winter", "dog", "kids"), 45, ("130x170", "150x200")),
    "stool": Kind("rest", ("wood", "aluminium", "plastic"), ("camping", "fishing", "garden", "kids"), 33),
    "lamp": Kind(
        "light", ("steel", "aluminium", "plastic"), ("camping", "office", "cycling", "garden"), 27, ("200lm", "400lm")
    ),
    "candle": Kind("light", ("ceramic", "steel"), ("garden", "winter", "office"), 15, ("S", "L")),
    "notebook": Kind("desk", ("leather", "cotton", "wood"), ("office", "kids", "fishing", "garden"), 14, ("A5", "A6")),
    "organiser": Kind(
        "desk", ("wood", "steel", "plastic"), ("office", "kitchen", "baking", "fishing"), 25, ("S", "M", "L")
    ),
}

ENGLISH = Words(
    kinds={
        "bottle": Names(("Bottle", "Flask", "Btl"), ("bottle", "water bottle", "flask")),
        "mug": Names(("Mug", "Cup", "Beaker"), ("mug", "cup")),
        "kettle": Names(("Kettle", "Boiler"), ("kettle", "water boiler")),
        "filter": Names(("Dripper", "Filter", "Filter Holder"), ("filter", "dripper", "pour over")),
        "grinder": Names(("Mill", "Grinder", "Hand Mill"), ("grinder", "mill")),
        "pan": Names(("Skillet", "Pan", "Fry Pan"), ("frying pan", "pan", "skillet")),
        "pot": Names(("Pot", "Casserole"), ("pot", "stew pot", "casserole")),
        "knife": Names(("Knife", "Blade"), ("knife", "sharp knife")),
        "board": Names(("Board", "Chopping Brd"), ("cutting board", "chopping board")),
        "bowl": Names(("Bowl", "Dish"), ("bowl", "dish")),
        "lunchbox": Names(("Lunch Box", "Food Tin", "Bento"), ("lunch box", "lunchbox", "sandwich box")),
        "apron": Names(("Apron", "Pinafore"), ("apron", "pinny")),
        "gloves": Names(("Gloves", "Mitts", "Glv"), ("gloves", "mittens")),
        "hat": Names(("Hat", "Cap", "Beanie"), ("hat", "cap")),
        "socks": Names(("Socks", "Sox 2pr"), ("socks", "pair of socks")),
        "jacket": Names(("Jacket", "Shell", "Jkt"), ("jacket", "coat")),
        "backpack": Names(("Rucksack", "Pack", "Daypack"), ("backpack", "rucksack", "bag")),
        "pouch": Names(("Pouch", "Zip Case"), ("pouch", "small bag", "case")),
        "blanket": Names(("Throw", "Blanket", "Plaid"), ("blanket", "throw")),
        "stool": Names(("Stool", "Seat", "Folding Seat"), ("stool", "seat", "little chair")),
        "lamp": Names(("Lantern", "Lamp", "Light"), ("lamp", "light", "lantern")),
        "candle": Names(("Candle", "Tealight Holder"), ("candle", "tealight")),
        "notebook": Names(("Notebook", "Journal", "Log Bk"), ("notebook", "diary", "notepad")),
        "organiser": Names(("Organiser", "Caddy", "Tidy"), ("organiser", "storage box", "tidy")),
    },
    materials={
        "steel": Names(("S/S", "Inox", "18/8"), ("steel", "stainless", "rustproof")),
        "aluminium": Names(("Alu", "6061", "Anod."), ("aluminium", "light metal")),
        "plastic": Names(("PP", "Tritan", "Poly"), ("plastic", "unbreakable")),
        "ceramic": Names(("Stoneware", "CER", "Glazed"), ("ceramic", "china", "earthenware")),
        "wood": Names(("Acacia", "Beech", "Oak FSC"), ("wooden", "wood")),
        "cotton": Names(("Canvas", "CO 100%", "Twill"), ("cotton", "fabric", "cloth")),
        "leather": Names(("Nappa", "LTHR", "Hide"), ("leather", "real leather")),
        "wool": Names(("Merino", "WO", "Lambswool"), ("wool", "woollen", "warm knit")),
    },
    uses={
        "camping": Names(("Larkfell", "Emberstead"), ("camping", "for a camper", "tent trip", "sleeping outdoors")),
        "cycling": Names(("Veloce-9", "Chainring"), ("cycling", "for a cyclist", "bike ride", "commuting by bike")),
        "office": Names(("Deskmate", "No.12"), ("office", "for a colleague", "at my desk", "for work")),
        "kids": Names(("Pipkin", "Tumblewick"), ("kids", "for a child", "for my little one", "for school")),
        "winter": Names(("Frostholm", "Tindra"), ("winter", "for cold days", "against the cold", "for snow")),
        "coffee": Names(("Crema Club", "Third Pour"), ("coffee", "for a coffee lover", "barista", "espresso fan")),
        "kitchen": Names(("Hearthline", "Chef's Row"), ("kitchen", "for a home cook", "for cooking", "for a new flat")),
        "baking": Names(("Crumb & Co", "Proofer"), ("baking", "for a baker", "bread making", "for cakes")),
        "garden": Names(("Thornbury", "Greenlow"), ("garden", "for a gardener", "for the allotment", "plants")),
        "fishing": Names(("Tideline", "Angler's Rest"), ("fishing", "for an angler", "river bank", "day at the lake")),
        "dog": Names(("Barkley", "Good Boy"), ("dog", "for a dog owner", "for my puppy", "walkies")),
    },
    colours={
        "black": Names(("blk", "Onyx"), ("black", "dark")),
        "white": Names(("wht", "Chalk"), ("white", "plain white")),
        "red": Names(("rd", "Ruby"), ("red", "bright red")),
        "blue": Names(("blu", "Fjord"), ("blue", "navy")),
        "green": Names(("grn", "Moss"), ("green", "olive")),
        "yellow": Names(("ylw", "Saffron"), ("yellow", "sunny yellow")),
    },
    brands={
        "norrvik": Names(("Norrvik", "NORRVIK"), ("norrvik", "the viking brand")),
        "halden": Names(("Halden & Rowe", "Halden+Rowe"), ("halden rowe", "h&r")),
        "kuma": Names(("Kuma Works", "KUMA"), ("kuma", "the bear brand")),
        "osterley": Names(("Osterley", "OSTERLEY Ltd"), ("osterley", "ozzy")),
        "brightwater": Names(("Brightwater", "BW"), ("brightwater", "b-water")),
        "tallow": Names(("Tallow Lane", "TL Goods"), ("tallow lane", "tallow")),
        "quillon": Names(("Quillon", "Quillon Supply"), ("quillon", "the sword logo one")),
        "mirepoix": Names(("Mirepoix Maison", "M. Maison"), ("mirepoix", "the french brand")),
    },
    families={
        "drink": "Drinkware",
        "cook": "Cook & Prep",
        "wear": "Clothing",
        "bag": "Bags",
        "rest": "Comfort",
        "light": "Lighting",
        "desk": "Stationery",
    },
    noise=("NEW", "*SALE*", "Ltd. Ed.", "(boxed)", "2nd gen", "Art. {n}", "w/ tag", "Bestseller!", "Ref {n}"),
    queries=(
        "{use} {kind}",
        "{kind} {use}",
        "{material} {kind}",
        "{brand} {kind}",
        "{colour} {kind}",
        "{material} {kind} {use}",
        "{colour} {kind} {use}",
        "{brand} {kind} {use}",
        "gift {use}",
        "{kind}",
        "{brand} {material} {kind}",
    ),
)

CHINESE = Words(
    kinds={
        "bottle": Names(("保温瓶", "随行瓶", "水壶"), ("水瓶", "喝水的瓶子", "水壶")),
        "mug": Names(("马克杯", "口杯"), ("杯子", "茶杯")),
        "kettle": Names(("烧水壶", "煮水壶"), ("烧水壶", "水煲")),
        "filter": Names(("滤杯", "分享滤架"), ("滤杯", "手冲壶")),
        "grinder": Names(("研磨器", "手摇磨"), ("磨豆机", "研磨机")),
        "pan": Names(("平底锅", "煎锅"), ("炒锅", "平底锅")),
        "pot": Names(("炖锅", "汤锅"), ("锅", "煲汤锅")),
        "knife": Names(("刀具", "小刀"), ("刀", "锋利的刀")),
        "board": Names(("砧板", "切菜板"), ("菜板", "案板")),
        "bowl": Names(("碗", "盆"), ("碗", "小盆")),
        "lunchbox": Names(("便当盒", "饭盒"), ("饭盒", "带饭盒子")),
        "apron": Names(("围裙", "工作围裙"), ("围裙", "罩衣")),
        "gloves": Names(("手套", "防护手套"), ("手套", "连指手套")),
        "hat": Names(("帽", "针织帽"), ("帽子", "遮阳帽")),
        "socks": Names(("袜 2双装", "中筒袜"), ("袜子", "厚袜子")),
        "jacket": Names(("外套", "冲锋衣"), ("外套", "大衣")),
        "backpack": Names(("双肩包", "背囊"), ("背包", "书包")),
        "pouch": Names(("收纳袋", "拉链包"), ("小包", "袋子")),
        "blanket": Names(("盖毯", "毛毯"), ("毯子", "被毯")),
        "stool": Names(("折叠凳", "矮凳"), ("凳子", "小板凳")),
        "lamp": Names(("营灯", "灯具"), ("灯", "照明灯")),
        "candle": Names(("香薰蜡烛", "烛台"), ("蜡烛", "烛台")),
        "notebook": Names(("手账本", "记事簿"), ("笔记本", "本子")),
        "organiser": Names(("整理架", "置物盒"), ("收纳盒", "储物盒")),
    },
    materials={
        "steel": Names(("304", "S/S"), ("不锈钢", "不生锈的")),
        "aluminium": Names(("航空铝", "AL"), ("铝", "轻金属")),
        "plastic": Names(("Tritan", "PP"), ("塑料", "摔不坏的")),
        "ceramic": Names(("粗陶", "釉面"), ("陶瓷", "瓷的")),
        "wood": Names(("榉木", "相思木"), ("木头", "木制")),
        "cotton": Names(("帆布", "斜纹布"), ("棉", "布的")),
        "leather": Names(("头层皮", "牛皮"), ("真皮", "皮的")),
        "wool": Names(("美利奴", "羊绒混纺"), ("羊毛", "保暖毛线")),
    },
    uses={
        "camping": Names(("云雀岭", "余烬"), ("露营", "搭帐篷用", "野外过夜")),
        "cycling": Names(("风轮", "链环"), ("骑行", "骑车用", "自行车通勤")),
        "office": Names(("案头", "十二号"), ("办公室", "送同事", "上班用")),
        "kids": Names(("小豆丁", "翻斗"), ("儿童", "送小朋友", "上学用")),
        "winter": Names(("霜原", "初雪"), ("冬天", "防寒", "下雪天")),
        "coffee": Names(("油脂社", "第三冲"), ("咖啡", "送咖啡迷", "手冲爱好者")),
        "kitchen": Names(("灶台线", "主厨"), ("厨房", "做饭用", "新家")),
        "baking": Names(("面包屑", "醒发"), ("烘焙", "做蛋糕", "烤面包")),
        "garden": Names(("荆园", "绿洼"), ("园艺", "种花用", "阳台植物")),
        "fishing": Names(("潮线", "钓翁"), ("钓鱼", "河边用", "送钓友")),
        "dog": Names(("汪仔", "好狗狗"), ("狗狗", "养狗人", "遛狗用")),
    },
    colours={
        "black": Names(("曜石黑", "BK"), ("黑色", "深色")),
        "white": Names(("粉笔白", "WH"), ("白色", "纯白")),
        "red": Names(("宝石红", "RD"), ("红色", "大红")),
        "blue": Names(("峡湾蓝", "BL"), ("蓝色", "藏青")),
        "green": Names(("苔绿", "GR"), ("绿色", "军绿")),
        "yellow": Names(("藏红花黄", "YL"), ("黄色", "明黄")),
    },
    brands={
        "norrvik": Names(("北湾", "北湾 Norrvik"), ("北湾", "维京那家")),
        "halden": Names(("哈登罗", "H&R"), ("哈登罗", "老哈")),
        "kuma": Names(("熊工坊", "KUMA"), ("熊工坊", "小熊牌")),
        "osterley": Names(("奥斯特", "OSTERLEY"), ("奥斯特", "老奥")),
        "brightwater": Names(("明水", "明水 BW"), ("明水", "水滴标")),
        "tallow": Names(("烛巷", "TL烛巷"), ("烛巷", "巷子家")),
        "quillon": Names(("剑格", "剑格供应"), ("剑格", "那个剑标志的")),
        "mirepoix": Names(("米普瓦", "M.米普瓦"), ("米普瓦", "法国那个牌子")),
    },
    families={
        "drink": "杯壶",
        "cook": "厨具",
        "wear": "服饰",
        "bag": "箱包",
        "rest": "家居",
        "light": "灯烛",
        "desk": "文具",
    },
    noise=("【新品】", "🔥爆款", "限量", "（盒装）", "第二代", "货号{n}", "🎁", "包邮", "✨"),
    queries=(
        "{use} {kind}",
        "{kind} {use}",
        "{material}{kind}",
        "{brand}{kind}",
        "{colour}{kind}",
        "{use}{material}{kind}",
        "{colour}{kind} {use}",
        "{brand}{kind} {use}",
        "礼物 {use}",
        "{kind}",
        "{brand} {material}{kind}",
    ),
    wide=True,
)
