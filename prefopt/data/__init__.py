"""Turns files of preferences into token records: file → schema → record → view → tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefopt.common.lazy_package import load_lazily

if TYPE_CHECKING:
    from prefopt.data.data_config import DataConfig
    from prefopt.data.prepare import Prepared, prepare
    from prefopt.data.reader import ReadResult, read
    from prefopt.data.record import Message, Record, Rejection, Text
    from prefopt.data.token_table import TokenTable
    from prefopt.data.tokenize import TokenResult, tokenize
    from prefopt.data.tokens import TokenRecord
    from prefopt.data.views import ViewResult, to_view

__all__ = [
    "DataConfig", "Message", "Prepared", "ReadResult", "Record", "Rejection", "Text", "TokenRecord", "TokenResult",
    "TokenTable", "ViewResult", "prepare", "read", "to_view", "tokenize",
]  # fmt: skip

load_lazily(
    __name__,
    {
        "DataConfig": "prefopt.data.data_config",
        "Message": "prefopt.data.record",
        "Prepared": "prefopt.data.prepare",
        "ReadResult": "prefopt.data.reader",
        "Record": "prefopt.data.record",
        "Rejection": "prefopt.data.record",
        "Text": "prefopt.data.record",
        "TokenRecord": "prefopt.data.tokens",
        "TokenResult": "prefopt.data.tokenize",
        "TokenTable": "prefopt.data.token_table",
        "ViewResult": "prefopt.data.views",
        "prepare": "prefopt.data.prepare",
        "read": "prefopt.data.reader",
        "to_view": "prefopt.data.views",
        "tokenize": "prefopt.data.tokenize",
    },
)
