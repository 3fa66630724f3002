"""What the drawn pages say: a few dozen phrases a language, put together by templates."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

PageKind = Literal["contract", "invoice", "letter", "table"]
PAGE_KINDS: tuple[PageKind, ...] = ("contract", "invoice", "letter", "table")


@dataclass(frozen=True)
class Phrases:
    """The words of one language.

    Attributes:
        joiner: What stands between two words of a line.
        titles: Titles of each kind of page.
        names: Companies and offices.
        people: Signatories.
        places: Cities.
        headings: Headings of clauses.
        sentences: With the slots `{a}` `{b}` (names), `{p}` place, `{n}` number, `{m}` money, `{d}` date, `{g}` goods.
        goods: What is sold and counted.
        columns: Heads of a table: goods, quantity, price, amount.
        labels: Words before a colon, by what they label.
        date: How a date is written, with `{y}`, `{m}`, `{d}`.
    """

    joiner: str
    titles: dict[PageKind, tuple[str, ...]]
    names: tuple[str, ...]
    people: tuple[str, ...]
    places: tuple[str, ...]
    headings: tuple[str, ...]
    sentences: tuple[str, ...]
    goods: tuple[str, ...]
    columns: tuple[str, str, str, str]
    labels: dict[str, str]
    date: str

    def one(self, rng: np.random.Generator, phrases: tuple[str, ...]) -> str:
        """Return one of some phrases."""
        return phrases[int(rng.integers(len(phrases)))]

    def day(self, rng: np.random.Generator) -> str:
        """Return a date."""
        year, month, day = rng.integers((2004, 1, 1), (2027, 13, 29)).tolist()
        return self.date.format(y=year, m=month if self.joiner == "" else MONTHS[month - 1], d=day)

    def money(self, rng: np.random.Generator) -> str:
        """Return an amount."""
        return f"{10 ** rng.uniform(1, 6):,.2f}"

    def sentence(self, rng: np.random.Generator) -> str:
        """Return a sentence with its slots filled."""
        first, second = rng.permutation(len(self.names))[:2].tolist()
        return self.one(rng, self.sentences).format(
            a=self.names[first],
            b=self.names[second],
            p=self.one(rng, self.places),
            n=int(rng.integers(2, 120)),
            m=self.money(rng),
            d=self.day(rng),
            g=self.one(rng, self.goods),
        )

    def paragraph(self, rng: np.random.Generator, least: int = 2, most: int = 5) -> str:
        """Return some sentences in a row."""
        return self.joiner.join(self.sentence(rng) for _ in range(int(rng.integers(least, most + 1))))

    def words(self, text: str) -> list[str]:
        """Split a text where a line may be broken."""
        return text.split() if self.joiner else list(text)


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip

ENGLISH = Phrases(
    joiner=" ",
    titles={
        "contract": ("Purchase Agreement", "Lease Contract", "Service Agreement", "Loan Agreement"),
        "invoice": ("Invoice", "Tax Invoice", "Commercial Invoice", "Receipt", "Delivery Note"),
        "letter": ("Letter of Confirmation", "Notice", "Certificate", "Statement", "Power of Attorney"),
        "table": ("Statement of Accounts", "Inspection Report", "Price List", "Inventory", "Attendance Record"),
    },
    names=("Northgate Trading Ltd", "Harbour & Sons", "Blue River Foods", "Alder Engineering", "Meridian Freight Inc",
           "Lindqvist Paper AB", "Orchard Textiles", "Castle Street Bank", "Tanaka Instruments", "Pioneer Glass Works",
           "The Registry of Deeds", "Department of Public Works", "Silverline Logistics", "Greenfield Dairy"),
    people=("A. Morgan", "J. Whitfield", "Helen Brandt", "Tomas Rivera", "C. Okafor", "Mei Tanaka", "R. Lindgren"),
    places=("Rotterdam", "Bristol", "Porto", "Gdansk", "Osaka", "Halifax", "Cork", "Valencia", "Tampere", "Lyon"),
    headings=("Scope", "Price and payment", "Delivery", "Warranty", "Confidentiality", "Term and termination",
              "Liability", "Governing law", "Notices", "Force majeure", "Insurance", "Assignment"),
    sentences=(
        "{a} shall deliver {n} {g} to the premises of {b} in {p} not later than {d}.",
        "The price agreed by both parties amounts to EUR {m} and is due within {n} days.",
        "Any change to this document needs the written consent of {a} and of {b}.",
        "The goods remain the property of {a} until the whole amount of EUR {m} has been paid.",
        "This document was made in {p} on {d} in two copies of equal force.",
        "{b} will inspect the {g} on arrival and report faults within {n} days.",
        "If payment is late, interest of {n} per cent a year is owed from {d} on.",
        "The courts of {p} decide on all disputes that arise from it.",
        "We confirm that {a} has settled its account with us as of {d}.",
        "Neither party is liable for delay that is caused by events beyond its control.",
        "Notices are to be sent to the registered office of {b} in {p}.",
        "The deposit of EUR {m} is returned within {n} days after the end of the term.",
        "Please find enclosed the record of {n} {g} that were received on {d}.",
    ),
    goods=("pallets of paper", "steel brackets", "glass panels", "cotton rolls", "pumps", "desk lamps", "bearings",
           "copper tubes", "cartons", "office chairs", "filters", "circuit boards"),
    columns=("Description", "Quantity", "Unit price", "Amount"),
    labels={"first": "For the seller", "second": "For the buyer", "date": "Date", "number": "No.", "to": "To",
            "total": "Total", "signed": "Authorised signature", "made": "Prepared by", "approved": "Approved by",
            "closing": "Yours faithfully,", "page": "Page", "between": "between", "place": "Place", "and": "and"},
    date="{d} {m} {y}",
)  # fmt: skip

CHINESE = Phrases(
    joiner="",
    titles={
        "contract": ("采购合同", "房屋租赁合同", "技术服务合同", "借款合同"),
        "invoice": ("收款收据", "送货单", "销售清单", "结算单"),
        "letter": ("证明", "通知", "授权委托书", "工作函"),
        "table": ("对账单", "检验报告", "库存明细表", "报价单"),
    },
    names=("江南商贸有限公司", "华兴建筑工程有限公司", "东方电子科技有限公司", "海天食品有限公司", "长河物流有限公司",
           "新城置业有限公司", "金桥印务有限公司", "安平医药有限公司"),
    people=("王建国", "李明", "张丽", "陈志强", "刘洋", "赵敏"),
    places=("上海市", "广州市", "南京市", "成都市", "武汉市", "杭州市"),
    headings=("合同标的", "价款与支付", "交货", "质量保证", "保密", "违约责任", "争议解决", "合同期限"),
    sentences=(
        "{a}应于{d}前向{b}交付{g}{n}件。",
        "双方约定的总价款为人民币{m}元，自签订之日起{n}日内支付。",
        "本合同一式两份，双方各执一份，具有同等法律效力。",
        "如发生争议，双方应协商解决，协商不成的由{p}人民法院管辖。",
        "{b}应在收到货物后{n}日内完成验收，并书面通知{a}。",
        "逾期付款的，每日按未付金额的千分之一支付违约金。",
        "兹证明{a}截至{d}在我单位的账目已结清。",
        "未经对方书面同意，任何一方不得转让本合同项下的权利和义务。",
        "押金人民币{m}元在期满后{n}日内退还。",
    ),
    goods=("办公用纸", "钢材", "玻璃", "棉布", "水泵", "台灯", "轴承", "电路板"),
    columns=("品名", "数量", "单价", "金额"),
    labels={"first": "甲方（盖章）", "second": "乙方（盖章）", "date": "日期", "number": "编号", "to": "致",
            "total": "合计", "signed": "负责人签字", "made": "制表", "approved": "审核", "closing": "特此函告",
            "page": "第", "between": "甲方", "place": "地点", "and": "乙方"},
    date="{y}年{m}月{d}日",
)  # fmt: skip
