"""What seals say: companies, uses, dates, serial numbers and names, in Latin letters and in Chinese."""

from collections.abc import Sequence

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST = _words(
    "ALDER AMBER ARDEN ASHFORD BIRCH BRAMLEY CALDER CEDAR CORAL DELTA ELMWOOD FALCON FENWICK GRANITE HARBOUR HAWTHORN "
    "HOLLIS IVORY JUNIPER KESTREL LARKIN LINDEN MARLOW MERIDIAN NORWELL OAKLEY ORCHARD PELHAM QUARRY ROWAN SABLE "
    "SELWYN THORNE TILBURY UMBER VALLEY WILLOW WREN YARROW ZEPHYR"
)
_TRADES = _words(
    "TRADING LOGISTICS MOTORS TEXTILES FOODS PRINTING INSURANCE SHIPPING HOLDINGS ENGINEERING CHEMICALS PAPER "
    "SERVICES TIMBER OPTICS MEDICAL ENERGY RESEARCH"
)
_FORMS = ("LTD", "LLC", "INC", "CO., LTD", "S.A.", "GMBH", "& SONS", "& CO.", "GROUP")
_CITIES = _words(
    "ABERDEEN ANTWERP BERGEN BRISTOL CORDOBA DRESDEN GENEVA GENOA HALIFAX LEEDS LYON MALMO NAPLES ODENSE OPORTO "
    "PORTLAND RIGA ROTTERDAM TRIESTE UTRECHT VALENCIA VIENNA"
)
_USES = (
    "CONTRACT SEAL", "FINANCE ONLY", "FOR INVOICES", "OFFICIAL SEAL", "NOTARY", "LEGAL DEPT", "CUSTOMS", "ACCOUNTS",
    "QUALITY", "REGISTRY", "PURCHASING", "EXPORT",
)  # fmt: skip
_STATES = (
    "PAID", "APPROVED", "RECEIVED", "CERTIFIED", "COPY", "ORIGINAL", "CANCELLED", "ENTERED", "CHECKED", "POSTED",
    "URGENT", "FINAL",
)  # fmt: skip
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_INITIALS = tuple("ABCDEFGHJKLMNOPRSTVW")
_SURNAMES = _words(
    "ABBOTT BAKER CARVER DALE ELLIS FORD GRANT HALE IRVING JARVIS KEMP LOWE MOSS NASH OWEN PAGE QUINN REED STONE TATE "
    "VANCE WARD YORK"
)

_HAN_CITIES = _words("北京 上海 广州 深圳 天津 杭州 南京 成都 武汉 西安 长沙 青岛 大连 厦门 苏州 宁波")
_HAN_BRANDS = "华兴达信诚宏泰安金瑞丰盛联合创新远东海天中科明德永昌嘉利"
_HAN_TRADES = _words("科技 贸易 信息技术 文化传媒 建筑工程 物流 投资管理 电子商务 网络 咨询 实业 机械设备")
_HAN_FORMS = ("有限公司", "股份有限公司", "有限责任公司", "集团公司", "研究院", "管理委员会")
_HAN_USES = ("合同专用章", "财务专用章", "发票专用章", "业务专用章", "人事专用章", "研究专用", "公章", "法务章")
_HAN_STATES = ("已审核", "现金付讫", "银行收讫", "作废", "合格", "受控文件")
_HAN_SURNAMES = "王李张刘陈杨黄赵周吴徐孙马朱胡林郭何高罗"
_HAN_GIVEN = "明华建国伟芳军平丽强文海晓东春玉志永红云"
_HAN_TOWN = "市"
_HAN_NAME_ENDS = ("之印", "印", "")

_HAN_TEXTS = (
    *_HAN_CITIES, _HAN_BRANDS, *_HAN_TRADES, *_HAN_FORMS, *_HAN_USES, *_HAN_STATES, _HAN_SURNAMES, _HAN_GIVEN,
    *_HAN_NAME_ENDS, _HAN_TOWN,
)  # fmt: skip
HAN_LETTERS = "".join(sorted(set("".join(_HAN_TEXTS))))


def is_han(char: str) -> bool:
    """Whether a character is a Chinese one, which fills a square."""
    return "\u2e80" <= char <= "\u9fff"


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _number(rng: np.random.Generator, digits: int) -> str:
    return "".join(str(int(digit)) for digit in rng.integers(0, 10, digits))


def draw_serial(rng: np.random.Generator, chinese: bool) -> str:
    """Thirteen digits, as Chinese registers give them, or a short number with a prefix."""
    if chinese:
        return _number(rng, int(rng.choice((7, 11, 13))))
    return _pick(rng, ("No. ", "REG. ", "ID ", "")) + _number(rng, int(rng.integers(5, 9)))


def draw_date(rng: np.random.Generator) -> str:
    """A day between 1998 and 2029 in one of three notations."""
    day, month, year = int(rng.integers(1, 29)), int(rng.integers(1, 13)), int(rng.integers(1998, 2030))
    forms = (f"{day:02d} {_MONTHS[month - 1]} {year}", f"{year}-{month:02d}-{day:02d}", f"{day:02d}.{month:02d}.{year}")
    return _pick(rng, forms)


def draw_company(rng: np.random.Generator, chinese: bool) -> str:
    """A company that nobody registered: 7 to 15 Chinese characters, or 9 to 34 Latin ones."""
    if chinese:
        city = _pick(rng, _HAN_CITIES) + (_HAN_TOWN if rng.random() < 0.3 else "") if rng.random() < 0.7 else ""
        brand = "".join(rng.choice(list(_HAN_BRANDS), 2, replace=False))
        return city + brand + _pick(rng, _HAN_TRADES) + _pick(rng, _HAN_FORMS)
    first = _pick(rng, _FIRST) + (f" & {_pick(rng, _FIRST)}" if rng.random() < 0.2 else "")
    trade = f" {_pick(rng, _TRADES)}" if rng.random() < 0.75 else ""
    return f"{first}{trade} {_pick(rng, _FORMS)}"


def draw_place(rng: np.random.Generator, chinese: bool) -> str:
    """A city."""
    return _pick(rng, _HAN_CITIES if chinese else _CITIES)


def draw_use(rng: np.random.Generator, chinese: bool) -> str:
    """What a seal may be used for."""
    return _pick(rng, _HAN_USES if chinese else _USES)


def draw_state(rng: np.random.Generator, chinese: bool) -> str:
    """What an office stamp says has happened to a document."""
    return _pick(rng, _HAN_STATES if chinese else _STATES)


def draw_person(rng: np.random.Generator, chinese: bool) -> str:
    """A name: two to four Chinese characters, or a surname, sometimes with an initial."""
    if chinese:
        given = "".join(rng.choice(list(_HAN_GIVEN), int(rng.integers(1, 3)), replace=False))
        name = _pick(rng, _HAN_SURNAMES) + given
        return name + _pick(rng, [end for end in _HAN_NAME_ENDS if len(name + end) <= 4])
    surname = _pick(rng, _SURNAMES)
    return f"{_pick(rng, _INITIALS)}. {surname}" if rng.random() < 0.6 else surname
