"""Prior growth of cells: how fast they divide and die, guessed from the expression of two sets of genes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_choice, check_known, check_number, check_seed
from cellrank_velot.preprocessing._checks import check_anndata, check_finite, check_writeable

__all__ = [
    "APOPTOSIS_GENES",
    "PROLIFERATION_GENES",
    "Organism",
    "RateOptions",
    "TimeUnit",
    "growth_rate",
    "score_genes",
    "score_growth",
]

logger = logging.getLogger("cellrank_velot")

Organism = Literal["auto", "human", "mouse"]
TimeUnit = Literal["hour", "day", "week"]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: Genes of the phases S and G2/M, human symbols, 97 :cite:p:`tirosh:16`.
PROLIFERATION_GENES = _names(
    # S phase
    "MCM5 PCNA TYMS FEN1 MCM2 MCM4 RRM1 UNG GINS2 MCM6 CDCA7 DTL PRIM1 UHRF1 CENPU HELLS RFC2 RPA2 NASP RAD51AP1 GMNN "
    "WDR76 SLBP CCNE2 UBR7 POLD3 MSH2 ATAD2 RAD51 RRM2 CDC45 CDC6 EXO1 TIPIN DSCC1 BLM CASP8AP2 USP1 CLSPN POLA1 "
    "CHAF1B BRIP1 E2F8 "
    # G2 and M phase
    "HMGB2 CDK1 NUSAP1 UBE2C BIRC5 TPX2 TOP2A NDC80 CKS2 NUF2 CKS1B MKI67 TMPO CENPF TACC3 PIMREG SMC4 CCNB2 CKAP2L "
    "CKAP2 AURKB BUB1 KIF11 ANP32E TUBB4B GTSE1 KIF20B HJURP CDCA3 JPT1 CDC20 TTK CDC25C KIF2C RANGAP1 NCAPD2 DLGAP5 "
    "CDCA2 CDCA8 ECT2 KIF23 HMMR AURKA PSRC1 ANLN LBR CKAP5 CENPE CTCF NEK2 G2E3 GAS2L3 CBX5 CENPA"
)

#: The hallmark gene set of apoptosis in MSigDB, human symbols, 161 :cite:p:`liberzon:15`.
APOPTOSIS_GENES = _names(
    "ADD1 AIFM3 ANKH ANXA1 APP ATF3 AVPR1A BAX BCAP31 BCL10 BCL2L1 BCL2L10 BCL2L11 BCL2L2 BGN BID BIK BIRC3 BMF BMP2 "
    "BNIP3L BRCA1 BTG2 BTG3 CASP1 CASP2 CASP3 CASP4 CASP6 CASP7 CASP8 CASP9 CAV1 CCNA1 CCND1 CCND2 CD14 CD2 CD38 CD44 "
    "CD69 CDC25B CDK2 CDKN1A CDKN1B CFLAR CLU CREBBP CTH CTNNB1 CYLD DAP DAP3 DCN DDIT3 DFFA DIABLO DNAJA1 DNAJC3 "
    "DNM1L DPYD EBP EGR3 EMP1 ENO2 ERBB2 ERBB3 EREG ETF1 F2 F2R FAS FASLG FDXR FEZ1 GADD45A GADD45B GCH1 GNA15 GPX1 "
    "GPX3 GPX4 GSN GSR GSTM1 GUCY2D H1-0 HGF HMGB2 HMOX1 HSPB1 IER3 IFITM3 IFNB1 IFNGR1 IGF2R IGFBP6 IL18 IL1A IL1B "
    "IL6 IRF1 ISG20 JUN KRT18 LEF1 LGALS3 LMNA LUM MADD MCL1 MGMT MMP2 NEDD9 NEFH PAK1 PDCD4 PDGFRB PEA15 PLAT PLCB2 "
    "PLPPR4 PMAIP1 PPP2R5B PPP3R1 PPT1 PRF1 PSEN1 PSEN2 PTK2 RARA RELA RETSAT RHOB RHOT2 RNASEL ROCK1 SAT1 SATB1 SC5D "
    "SLC20A1 SMAD7 SOD1 SOD2 SPTAN1 SQSTM1 TAP1 TGFB2 TGFBR3 TIMP1 TIMP2 TIMP3 TNF TNFRSF12A TNFSF10 TOP2A TSPO TXNIP "
    "VDAC2 WEE1 XIAP"
)

# Older symbols of these genes.
_OLDER_NAMES = {
    "CDK1": ("CDC2", "CDC2A"),
    "CENPU": ("MLF1IP",),
    "H1-0": ("H1F0",),
    "JPT1": ("HN1",),
    "PIMREG": ("FAM64A",),
    "PLPPR4": ("LPPR4",),
    "SC5D": ("SC5DL",),
    "TUBB4B": ("TUBB2C",),
}
# Mouse orthologs whose symbol differs from the human one in more than its case.
_MOUSE_NAMES = {"FASLG": ("FASL",), "GUCY2D": ("GUCY2E",)}

_MIN_MATCHED = 5
_N_BINS, _GENES_PER_BIN = 25, 20  # the former is scanpy's default
_DAYS = {"hour": 1 / 24, "day": 1.0, "week": 7.0}
# Centre and width of the logistic in standard deviations of the score. Waddington-OT has 0.25 and 0.5 for proliferation
# and 0.1 and 0.2 for apoptosis, in means of z-scores, whose standard deviations are 0.47 and 0.13 on the pancreas.
_PROLIFERATION_SHAPE, _APOPTOSIS_SHAPE = (0.5, 1.0), (0.75, 1.5)


@dataclass(frozen=True, kw_only=True)
class RateOptions(Options):
    """Options of :func:`growth_rate`, explained in :func:`score_growth`."""

    birth: tuple[float, float] = (0.3, 1.7)
    death: tuple[float, float] = (0.3, 1.7)
    time_unit: TimeUnit = "day"

    def __post_init__(self) -> None:
        """Check them."""
        check_choice("time_unit", self.time_unit, TimeUnit)
        for name in ("birth", "death"):
            rates = getattr(self, name)
            if isinstance(rates, str) or np.shape(rates) != (2,):
                raise ValueError(
                    f"Expected `{name}` to be a pair, the lowest and the highest rate per day, found `{rates!r}`."
                )
            low, high = (check_number(f"{name}[{i}]", rate, low=0) for i, rate in enumerate(rates))
            if low > high:
                raise ValueError(f"Expected the lowest rate of `{name}` before the highest, found `{rates!r}`.")
            object.__setattr__(self, name, (low, high))


def score_growth(
    adata: AnnData,
    organism: Organism = "auto",
    *,
    key_added: str = "growth_rate",
    time_unit: TimeUnit = RateOptions.time_unit,
    birth: tuple[float, float] = RateOptions.birth,
    death: tuple[float, float] = RateOptions.death,
    proliferation_genes: Sequence[str] | None = None,
    apoptosis_genes: Sequence[str] | None = None,
    layer: str | None = None,
    random_state: int = 0,
) -> None:
    r"""Guess the growth rate of cells from the expression of genes of proliferation and of apoptosis.

    Cells divide at a rate :math:`\beta(p)` and die at a rate :math:`\delta(a)`, and grow at :math:`g = \beta - \delta`
    :cite:p:`schiebinger:19`. The rates are logistic functions of the scores :math:`p` and :math:`a` of both gene sets,

    .. math:: \beta(p) = \beta_\min + (\beta_\max - \beta_\min) / (1 + e^{-4 (p - c) / w}).

    Scores are standardised first (mean 0, standard deviation 1), so that neither their scale nor their origin matters.
    Then :math:`c = 0.5, w = 1` for proliferation and :math:`c = 0.75, w = 1.5` for apoptosis, as in the source.

    The rate is a prior. Give its key to the kernel as ``growth_key``: the transport then expects a cell of rate
    :math:`g` to weigh :math:`e^{g \Delta t}` after a time :math:`\Delta t`, and may depart from it. Only differences
    between cells count: the scores are relative to the cells at hand, so the mean rate says nothing about the growth
    of the whole population.

    Parameters
    ----------
    adata
        Log-normalised expression, as many genes as possible; all time points together, so that their scores compare.
    organism
        Organism of the gene names. Names match in any case, as nearly all mouse orthologs have the human symbol in
        lower case. For ``"mouse"``, genes with a symbol of their own (*Fasl*, *Gucy2e*) are found by it. ``"auto"``
        decides by the case: human symbols are in capitals. Older symbols of a gene are found, too.
    key_added
        Column of `obs` for the rate.
    time_unit
        Unit of the times of the cells. The rate is written per this unit.
    birth
        Lowest and highest rate of division **per day**, whatever the `time_unit`.
    death
        Lowest and highest rate of death **per day**, whatever the `time_unit`.
    proliferation_genes
        Genes to use in place of :data:`~cellrank_velot.preprocessing.growth.PROLIFERATION_GENES`.
    apoptosis_genes
        Genes to use in place of :data:`~cellrank_velot.preprocessing.growth.APOPTOSIS_GENES`. Genes that are in both
        lists count as genes of proliferation only, as dividing cells would otherwise seem to die.
    layer
        Layer with the expression; `X` where not given.
    random_state
        Seed of the genes of comparison.

    Returns
    -------
    Nothing. Written are ``obs["proliferation_score"]`` and ``obs["apoptosis_score"]``, the mean over the genes minus
    that over genes of comparison that are expressed alike, and ``obs[key_added]``, the rate per `time_unit`. A failure
    leaves `adata` as it was.

    Raises
    ------
    TypeError
        If `adata` is not an AnnData or an option has the wrong type.
    KeyError
        If there is no such layer.
    ValueError
        If an option is out of range; if fewer than 5 genes of a list are found; if the expression has NaN or infinite
        values or is not logarithmic; if `adata` is a view or backed by a file.

    Examples
    --------
    >>> from cellrank_velot.preprocessing.growth import APOPTOSIS_GENES, PROLIFERATION_GENES
    >>> genes = [*PROLIFERATION_GENES[:10], *APOPTOSIS_GENES[:10]]
    >>> adata.var_names = genes + [f"Other{i}" for i in range(80)]
    >>> pp.score_growth(adata, "human", time_unit="hour")
    >>> bool(abs(adata.obs["growth_rate"]).max() < 2 / 24)
    True

    The kernel of a time series takes it:

    >>> series.obs["growth_rate"] = series.obs["true_growth"]  # in place of a guess
    >>> sk = OTVelocityKernel(series, time_kind="experimental")
    >>> bool(np.isfinite(sk.compute_velocity(growth_key="growth_rate").growth).all())
    True
    """
    check_choice("organism", organism, Organism)
    check_seed(random_state)
    if not isinstance(key_added, str):
        raise TypeError(f"Expected `key_added` to be a string, found `{type(key_added).__name__}`.")
    rates = RateOptions(birth=birth, death=death, time_unit=time_unit)
    divide = _upper("proliferation_genes", proliferation_genes or PROLIFERATION_GENES)
    die = [g for g in _upper("apoptosis_genes", apoptosis_genes or APOPTOSIS_GENES) if g not in divide]
    check_anndata(adata)
    check_writeable(adata)
    found = {
        title: _find_genes(adata, genes, title, organism, layer)
        for title, genes in (("proliferation", divide), ("apoptosis", die))
    }
    scores = {title: _score(adata, genes, layer, random_state) for title, genes in found.items()}
    rate = growth_rate(scores["proliferation"], scores["apoptosis"], rates)

    for title, score in scores.items():
        adata.obs[f"{title}_score"] = score
    adata.obs[key_added] = rate
    logger.info(
        "Growth rates per %s in obs[%r]: %.3g to %.3g, median %.3g",
        *(time_unit, key_added, rate.min(), rate.max(), np.median(rate)),
    )


def score_genes(
    adata: AnnData,
    genes: Sequence[str],
    *,
    organism: Organism = "auto",
    layer: str | None = None,
    random_state: int = 0,
) -> NDArray[np.float64]:
    """Return the mean log expression of genes minus that of genes expressed alike, by :func:`scanpy.tl.score_genes`.

    ``adata`` is only read, and its expression is shared.
    """
    check_choice("organism", organism, Organism)
    check_seed(random_state)
    return _score(adata, _find_genes(adata, _upper("genes", genes), "given", organism, layer), layer, random_state)


def growth_rate(
    proliferation: ArrayLike, apoptosis: ArrayLike, options: RateOptions = RateOptions()
) -> NDArray[np.float64]:
    """Return the growth rate of each cell from its two scores, by the formula of :func:`score_growth`."""
    p, a = (np.asarray(score, dtype=np.float64) for score in (proliferation, apoptosis))
    if p.ndim != 1 or p.shape != a.shape:
        raise ValueError(f"Expected one score of either kind per cell, found the shapes `{p.shape}` and `{a.shape}`.")
    if not (np.isfinite(p).all() and np.isfinite(a).all()):
        raise ValueError("Expected finite scores, found NaN or infinite values.")
    divide = _logistic(_standardised(p, "proliferation"), options.birth, _PROLIFERATION_SHAPE)
    die = _logistic(_standardised(a, "apoptosis"), options.death, _APOPTOSIS_SHAPE)
    return (divide - die) * _DAYS[options.time_unit]


def _logistic(
    score: NDArray[np.float64], rates: tuple[float, float], shape: tuple[float, float]
) -> NDArray[np.float64]:
    (low, high), (center, width) = rates, shape
    return np.asarray(low + (high - low) * expit(4 * (score - center) / width))


def _standardised(score: NDArray[np.float64], title: str) -> NDArray[np.float64]:
    centred, spread = score - score.mean(), score.std()
    if spread <= 1e-9 * np.abs(score).max(initial=0):
        logger.warning("The %s score is the same in all cells: it tells nothing about their growth", title)
        return np.zeros_like(score)
    return np.asarray(centred / spread)


def _upper(name: str, genes: Sequence[str]) -> list[str]:
    """Return the names in capitals, each once."""
    if isinstance(genes, str) or not all(isinstance(gene, str) for gene in genes):
        raise TypeError(f"Expected `{name}` to be a sequence of names, found `{genes!r}`.")
    return list(dict.fromkeys(gene.upper() for gene in genes))


def _find_genes(
    adata: AnnData, genes: Sequence[str], title: str, organism: Organism, layer: str | None
) -> NDArray[np.int64]:
    """Return the positions of the genes that there are, after a look at their expression."""
    # Reversed, so that of names that differ in their case only the first counts.
    position = {str(name).upper(): i for i, name in reversed(list(enumerate(adata.var_names)))}
    mouse = organism == "mouse" or (organism == "auto" and not _in_capitals(adata, [position.get(g) for g in genes]))
    other_names = _OLDER_NAMES | (_MOUSE_NAMES if mouse else {})
    options = ((gene, *other_names.get(gene, ())) for gene in genes)
    matched = (next((position[name] for name in names if name in position), None) for names in options)
    found = np.unique([ix for ix in matched if ix is not None]).astype(np.int64)
    if found.size < min(_MIN_MATCHED, max(len(genes), 1)):
        raise ValueError(_too_few(adata, genes, title, found.size))
    logger.info("Found %d of %d %s genes", found.size, len(genes), title)
    slot = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    _check_logarithmic(_expression(adata, layer)[:, found], slot)
    return found


def _in_capitals(adata: AnnData, positions: Sequence[int | None]) -> bool:
    names = [str(adata.var_names[ix]) for ix in positions if ix is not None]
    return 2 * sum(name.isupper() for name in names) > len(names)


def _too_few(adata: AnnData, genes: Sequence[str], title: str, n_found: int) -> str:
    example = ", ".join(repr(str(name)) for name in adata.var_names[:3])
    text = (
        f"Expected at least `{min(_MIN_MATCHED, max(len(genes), 1))}` {title} genes in `adata.var_names`, found "
        f"`{n_found}` of `{len(genes)}`. They are symbols such as {', '.join(map(repr, genes[:3]))}, in any case, but "
        f"`adata.var_names` has {example or 'none'}, ..."
    )
    if adata.raw is not None and adata.raw.n_vars > adata.n_vars:
        text += f" `adata.raw` has `{adata.raw.n_vars}` genes: try `adata.raw.to_adata()`, and copy the columns."
    return text


def _expression(adata: AnnData, layer: str | None) -> Any:
    if layer is not None:
        # The newest anndata keeps `X` there, under no name.
        check_known("adata.layers", layer, [key for key in adata.layers if key is not None])
        return adata.layers[layer]
    if adata.X is None:
        raise ValueError("Expected expression in `adata.X`, found none. Pass `layer`.")
    return adata.X


def _check_logarithmic(expression: Any, slot: str) -> None:
    values = check_finite(expression, slot)
    if values.size and values.max() > 0 and (values == np.round(values)).all():
        raise ValueError(
            f"Expected log-normalised expression in `{slot}`, found whole numbers. Call `cellrank_velot.pp.prepare`, "
            "or `scanpy.pp.normalize_total` and `scanpy.pp.log1p`, first."
        )
    if values.size and values.min() < 0:
        logger.warning("`%s` has negative values: genes of comparison are not of the same expression", slot)


def _score(adata: AnnData, genes: NDArray[np.int64], layer: str | None, random_state: int) -> NDArray[np.float64]:
    """Return the score of genes by position, on an object with names that are unique."""
    obs, var = (pd.DataFrame(index=np.arange(size).astype(str)) for size in adata.shape)
    light = AnnData(_expression(adata, layer), obs=obs, var=var)
    n_bins = int(np.clip(adata.n_vars // _GENES_PER_BIN, 2, _N_BINS))
    with _global_random_state_kept():
        sc.tl.score_genes(light, list(genes.astype(str)), n_bins=n_bins, random_state=random_state)
    return light.obs["score"].to_numpy(dtype=np.float64)


@contextmanager
def _global_random_state_kept() -> Iterator[None]:
    """Keep what scanpy would set."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
