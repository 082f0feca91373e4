"""The menu: every built-in loss, by name. A loss is one file and one line here.

`prefopt.losses.DPO` (by class) and `prefopt.load("dpo")` (by name) both work; files are imported on demand.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# name on the command line -> "file:Class"
MENU: dict[str, str] = {
    "alpha_dpo": "alpha_dpo:AlphaDPO",
    "alpha_po": "alpha_po:AlphaPO",
    "amapo": "amapo:AMaPO",
    "aot": "aot:AOT",
    "aot_unpaired": "aot:AOTUnpaired",
    "apo_down": "apo:APODown",
    "apo_zero": "apo:APOZero",
    "asft": "asft:ASFT",
    "bco": "bco:BCO",
    "bco_pair": "bco:BCOPair",
    "bco_pair_zero": "bco:BCOPairZero",
    "bdpo": "bdpo:BDPO",
    "beta_dpo": "beta_dpo:BetaDPO",
    "bpo": "bpo:BPO",
    "bradley_terry": "bradley_terry:BradleyTerry",
    "bradley_terry_margin": "bradley_terry:BradleyTerryMargin",
    "c2_dpo": "c2_dpo:C2DPO",
    "cal_dpo": "cal_dpo:CalDPO",
    "cdpo": "cdpo:CDPO",
    "chi_po": "chi_po:ChiPO",
    "cpo": "cpo:CPO",
    "cpo_simpo": "cpo:CPOSimPO",
    "csft": "csft:CSFT",
    "d2po": "d2po:D2PO",
    "dft": "dft:DFT",
    "discopop_lrml": "discopop_lrml:DiscoPOPLRML",
    "distill_dpo": "distill_dpo:DistillDPO",
    "dpo": "dpo:DPO",
    "dpo_d": "dpo_rk:DPOD",
    "dpo_norm": "dpo_norm:DPONorm",
    "dpo_rk": "dpo_rk:DPORK",
    "dpo_shift": "dpo_shift:DPOShift",
    "dpop": "dpop:DPOP",
    "dr_dpo": "dr_dpo:DrDPO",
    "dr_grpo": "grpo:DrGRPO",
    "epsilon_dpo": "epsilon_dpo:EpsilonDPO",
    "exo": "exo:EXO",
    "f_dpo": "f_dpo:FDPO",
    "focal_dpo": "focal_dpo:FocalDPO",
    "gamma_po": "gamma_po:GammaPO",
    "gdpo": "soft_dpo:GDPO",
    "gpo": "gpo:GPO",
    "grpo": "grpo:GRPO",
    "h_dpo": "h_dpo:HDPO",
    "hinge": "hinge:Hinge",
    "humanline_dpo": "humanline:HumanlineDPO",
    "humanline_kto": "humanline:HumanlineKTO",
    "hypo": "hypo:HyPO",
    "info_nca": "nca:InfoNCA",
    "ipo": "ipo:IPO",
    "ipo_sum": "ipo:IPOSum",
    "irpo": "irpo:IRPO",
    "kto": "kto:KTO",
    "kto_zero": "kto:KTOZero",
    "ld_dpo": "ld_dpo:LDDPO",
    "li_po": "li_po:LiPO",
    "lmpo": "lmpo:LMPO",
    "mallows_dpo": "mallows_dpo:MallowsDPO",
    "margin_dpo": "margin_dpo:MarginDPO",
    "minor_dpo": "minor_dpo:MinorDPO",
    "mix": "mix:Mix",
    "modpo": "modpo:MODPO",
    "nash_md": "nash_md:NashMD",
    "nca": "nca:NCA",
    "nca_list": "nca:NCAList",
    "npo": "npo:NPO",
    "odpo": "odpo:ODPO",
    "orpo": "orpo:ORPO",
    "orpo_beta": "orpo_beta:ORPOBeta",
    "plackett_luce": "plackett_luce:PlackettLuce",
    "pmpo": "pmpo:PMPO",
    "pointwise": "pointwise:Pointwise",
    "pointwise_bce": "pointwise:PointwiseBCE",
    "ppo": "ppo:PPO",
    "pro": "pro:PRO",
    "qrpo": "qrpo:QRPO",
    "qrpo_norm": "qrpo:QRPONorm",
    "r_dpo": "r_dpo:RDPO",
    "raft": "raft:RAFT",
    "rainbow_po": "rainbow_po:RainbowPO",
    "re_po": "re_po:RePO",
    "rebel": "rebel:REBEL",
    "reinforce_pp": "reinforce_pp:ReinforcePP",
    "reward_aware_po": "reward_aware_po:RewardAwarePO",
    "rloo": "rloo:RLOO",
    "rm_all_pairs": "rm_list:RMAllPairs",
    "rm_list": "rm_list:RMList",
    "robust_dpo": "robust_dpo:RobustDPO",
    "rpo_sft": "rpo_sft:RPOSFT",
    "rrhf": "rrhf:RRHF",
    "sam_po": "sam_po:SamPO",
    "sft": "sft:SFT",
    "sft_token_mean": "sft:SFTTokenMean",
    "simnpo": "simnpo:SimNPO",
    "simper": "simper:SimPER",
    "simpo": "simpo:SimPO",
    "slic_hf": "slic_hf:SLiCHF",
    "soft_dpo": "soft_dpo:SoftDPO",
    "spo": "spo:SPO",
    "sppo": "sppo:SPPO",
    "sppo_list": "sppo:SPPOList",
    "sppo_soft": "sppo:SPPOSoft",
    "tdpo1": "tdpo:TDPO1",
    "tdpo2": "tdpo:TDPO2",
    "tpo": "tpo:TPO",
    "tpo_l": "tpo:TPOL",
    "tr_dpo": "tr_dpo:TRDPO",
    "uni_dpo": "uni_dpo:UniDPO",
    "unlikelihood": "unlikelihood:Unlikelihood",
    "wpo": "wpo:WPO",
    "xpo": "xpo:XPO",
}


def load_class(name: str) -> Any:
    """Return the plugin class of a name of the menu."""
    module, _, cls = MENU[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), cls)


def __getattr__(name: str) -> Any:
    for target in MENU.values():
        module, _, cls = target.partition(":")
        if cls == name:
            return getattr(import_module(f"{__name__}.{module}"), cls)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
