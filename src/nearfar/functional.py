"""Every loss as a pure function, ``nf.functional.supcon_loss(z, labels=y)``: one function, one cited equation."""

from nearfar.losses.contrastive import contrastive_loss, spectral_loss
from nearfar.losses.information import mutual_information_loss
from nearfar.losses.margins import arcface_loss, cosface_loss
from nearfar.losses.moments import align_uniform_loss, barlow_twins_loss, vicreg_loss
from nearfar.losses.negatives import dcl_loss, debiased_loss, hard_negative_loss
from nearfar.losses.noise import nce_loss
from nearfar.losses.proxies import center_loss, proxy_anchor_loss, proxy_nca_loss
from nearfar.losses.raw_softmax import n_pairs_loss, nca_loss
from nearfar.losses.softmax import info_nce_loss, nt_xent_loss, supcon_loss
from nearfar.losses.triplet import triplet_loss
from nearfar.losses.two_sided import clip_loss, siglip_loss
from nearfar.losses.weighting import circle_loss, lifted_structure_loss, multi_similarity_loss

__all__ = [
    "align_uniform_loss",
    "arcface_loss",
    "barlow_twins_loss",
    "center_loss",
    "circle_loss",
    "clip_loss",
    "contrastive_loss",
    "cosface_loss",
    "dcl_loss",
    "debiased_loss",
    "hard_negative_loss",
    "info_nce_loss",
    "lifted_structure_loss",
    "multi_similarity_loss",
    "mutual_information_loss",
    "n_pairs_loss",
    "nca_loss",
    "nce_loss",
    "nt_xent_loss",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "siglip_loss",
    "spectral_loss",
    "supcon_loss",
    "triplet_loss",
    "vicreg_loss",
]
