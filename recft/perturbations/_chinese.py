"""Which Chinese characters are typed for which: equal in sound (a phonetic keyboard) or alike in shape (strokes)."""

from __future__ import annotations

import functools
from collections.abc import Mapping

__all__ = ["mistaken"]

# Each group: any may be typed for any other. Sounds without tones, as phonetic keyboards take them.
_SAME_SOUND = """
的地得 在再 做作坐座 他她它 是事市式试室 有又右友 和合盒河 机鸡基几级 包保宝报 色涩 衣一医依 子字自紫
裤库 鞋斜协 帽冒貌 裙群 电店点典 脑恼 手首守 壳可克刻 线现献县 充冲 器气汽起 打大达 印因音 墨默末莫 纸只指止
桌卓 椅以已 床窗 灯等登 杯背北 水睡 壶湖糊 锅国果 碗晚万 筷快块 刀到道 红洪鸿 黄皇煌 蓝兰篮 绿律率 白百柏
黑嘿 灰会辉 粉分份 金今斤 银引饮 新心欣 旧就救 高搞膏 低底抵 长常场 短段锻 宽款 厚候后 薄博泊 轻清青 重中众
男南难 女 童同铜 婴英鹰 夏下吓 冬东懂 春唇 秋球 防房放 晒筛 洗喜席 发法 护户互 肤夫扶 面棉免 膜磨模 香箱相
茶查插 咖卡 啡非飞 糖堂躺 米迷蜜 油由游 盐言颜 酒九久 果过 奶乃 粮凉两 狗够购 猫毛矛 玩完碗 具句巨 书舒输
笔比必 本奔 屏平瓶 幕目木 键件建 鼠属树 标表彪 音因阴 箱香 耳二儿 线限 数树 据剧 车扯 胎抬 品频 牌排 型形行
号好毫 码马 正政整 货获 邮油 价架家 格各隔 优由悠 惠会汇 装庄 套讨 件间 双霜 组祖 片骗 支枝只 张章 米密
"""

# Each group alike in shape; simplified, and the few traditional ones that are mixed up in shops.
_ALIKE = """
己已巳 未末 人入八 日曰目 大太犬 士土 千干于 问间 晴睛 拨拔 折拆 今令 王玉主 天夫 刀力 牛午 鸟乌 侯候 买卖
兔免 贝见 手毛 白自 田由甲申 木本术 休体 住佳往 代伐 治冶 准淮 冷泠 凉谅 晾惊 杯坏怀 板扳 析折
枚牧 抱拖 抢枪 拾抬 挂桂 挡档 椅倚 桶捅 棉锦绵 衫杉 袖抽 裸棵 袜抹 被披 鞋鞍 靴靶 幅福副 慢漫
清请情 洗洒 泡炮 油抽 沙纱 活话 浅线 溥薄 渴喝 滑猾 烧浇绕 灯打 炉护 玩完 珠株 球救 瓶拼 盆盒 盖盍
盘盆 磁滋 票栗 篮蓝 粒拉 粗组 红江 纯钝 细组 给结 绿缘 罐灌 耐酎 膏高 苹草 茶荼 菜莱 蒸燕 蜡腊
裹里 表衰 计汁 订钉 护扩 诗持 调洞 贷货 贴帖 赛塞 轻经 输喻 迷述 遍偏 钟种 钢纲 铁铣 锅祸 镜境 阳阴 雪雷
霜露 项顷 顶项 颈顷 饮欠 饭贩 饰饬 马鸟 鱼鲁 麻床
"""


@functools.cache
def mistaken() -> Mapping[str, str]:
    """Character -> those that are typed in its place.

    >>> sorted(mistaken()["再"]), "己" in mistaken()["已"]
    (['在'], True)
    """
    found: dict[str, dict[str, None]] = {}
    for group in (_SAME_SOUND + _ALIKE).split():
        for character in group:
            found.setdefault(character, {}).update(dict.fromkeys(group.replace(character, "")))
    return {character: "".join(others) for character, others in found.items() if others}
