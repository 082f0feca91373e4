"""Handing over a tuned model: a folder that plain transformers loads, with a model card, checked in a fresh process."""

from prefopt.export.hand_over import Exported, export

__all__ = ["Exported", "export"]
