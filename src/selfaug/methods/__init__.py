"""Fine-tuning methods: SelfAug and its rivals, in a registry by name."""

from __future__ import annotations

from selfaug.common.errors import ConfigError, nearest
from selfaug.methods.activations import ALIGNED_MODULES, AlignActivations
from selfaug.methods.anchored import Anchored
from selfaug.methods.asft import ASFT
from selfaug.methods.base import Method
from selfaug.methods.cfs import CFS
from selfaug.methods.combined import Combined
from selfaug.methods.dft import DFT
from selfaug.methods.eaft import EAFT
from selfaug.methods.ewc import EWC
from selfaug.methods.finch import FINCH
from selfaug.methods.flow import FLOW
from selfaug.methods.full import Full
from selfaug.methods.intruder import Intruder
from selfaug.methods.kl_response import KLResponse
from selfaug.methods.l2 import L2
from selfaug.methods.low_lr import LowLR
from selfaug.methods.magpie import Magpie
from selfaug.methods.oplora import OPLoRA
from selfaug.methods.orthogonal import Orthogonal
from selfaug.methods.osf import OSF
from selfaug.methods.prompt_nll import PromptNLL
from selfaug.methods.psft import PSFT
from selfaug.methods.replay import Replay
from selfaug.methods.sa_sft import SASFT
from selfaug.methods.sdft import SDFT
from selfaug.methods.selfaug import SelfAug
from selfaug.methods.sft import SFT
from selfaug.methods.starts import CorDA, PiSSA
from selfaug.methods.stm import STM
from selfaug.methods.talr import TALR
from selfaug.methods.tmkl import TMKL
from selfaug.methods.wise_ft import WiseFT

__all__ = ["METHODS", "Method", "available", "get_method"]

_ALL: tuple[Method, ...] = (
    # Alignment of the prompt, and plain fine-tuning.
    *(SelfAug(), SFT(), Full(), LowLR(), FINCH()),
    # Loss terms on the logits.
    *(PromptNLL(), KLResponse(), DFT(), ASFT(), EAFT(), TMKL(), TALR(), PSFT(), Anchored()),
    # Token weights from the base.
    *(STM(), FLOW()),
    # Rows: mixed in, or rewritten.
    *(Replay(), CFS(), Magpie(), SASFT(), SDFT()),
    # Weights of the model: penalties on the update, its directions, or a change of it afterwards.
    *(L2(), EWC(), Orthogonal(), OPLoRA(), WiseFT(), Intruder()),
    # Start of the adapter, or another adapter.
    *(CorDA(), PiSSA(), OSF()),
    # Activations inside the layers.
    AlignActivations(),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
_OLDER_NAMES: dict[str, Method] = {
    f"align-{modules}": AlignActivations(f"align-{modules}", modules) for modules in ALIGNED_MODULES
}


def available() -> dict[str, str]:
    """Return the methods' one-line summaries by name."""
    return {name: method.summary for name, method in METHODS.items()}


def get_method(name: str) -> Method:
    """Return the method of a name, or the combination of several names joined by ``+``.

    Raises:
        ConfigError: If a name is unknown (with the nearest one), or the parts contradict each other.
    """
    known = METHODS | _OLDER_NAMES
    for part in name.split("+"):
        if part not in known:
            where = "" if part == name else f": {part!r}"
            raise ConfigError(
                f"method={name!r}{where} is not known.{nearest(part, known)}", f"choose one of: {', '.join(METHODS)}."
            )
    parts = [known[part] for part in name.split("+")]
    return parts[0] if len(parts) == 1 else Combined(name, parts)
