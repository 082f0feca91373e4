"""Turns files of preferences into token records: file → schema → record → view → tokens."""

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
