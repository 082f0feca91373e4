"""`prefopt plan`: what a run will take, before it runs."""

from prefopt.planning.plan import Plan, plan
from prefopt.planning.sharded import Sharded, sharded

__all__ = ["Plan", "Sharded", "plan", "sharded"]
