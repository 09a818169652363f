"""A frozen language model that prefixes can be bound to.

Knows loading, freezing, identity and binding; does not know how prefixes are made or what text means.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from epigraph.errors import (
    AlreadyBound,
    BadValue,
    BatchMismatch,
    LostBinding,
    ReentrantCheckpointing,
    TextTooLong,
)
from epigraph.frozen import attention
from epigraph.frozen.attention import ARGUMENT, Rows, Run
from epigraph.frozen.fingerprint import fingerprint, fingerprint_state, tokenizer_fingerprint
from epigraph.frozen.geometry import survey
from epigraph.frozen.loading import load_causal, usable_device
from epigraph.frozen.lower import lowered, refuse_lowering
from epigraph.frozen.resolve import Checkpoint, resolve
from epigraph.virtual import KVPrefix, SoftPrompt, VirtualTokens

# What is bound in this thread or task, by model; a forward reads it once, on entry, and carries it from there.
_BOUND: ContextVar[tuple[tuple[int, Rows], ...]] = ContextVar("epigraph_bound", default=())

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenModel:
    """A causal language model, frozen, in eval mode, whose attention takes virtual keys and values.

    ``model`` and ``tokenizer`` are the ordinary transformers objects; every use of ``model`` (forward, ``generate``)
    inside :meth:`bind` carries the bound prefixes, and none does outside.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        attention_name: str = "sdpa",
        checkpoint_on_disk: Checkpoint | None = None,
    ) -> None:
        if attention_name not in attention.IMPLEMENTATIONS:
            raise BadValue(f"attention is {attention_name!r}, expected one of {', '.join(attention.IMPLEMENTATIONS)}")
        if str(model.config._attn_implementation).startswith(attention.seam_name("")):
            raise AlreadyBound(
                f"{model.config.name_or_path or type(model).__name__} is already in a FrozenModel; use that"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or model.config.name_or_path or type(model).__name__
        self._checkpoint = checkpoint_on_disk
        attention.install(model, attention_name)
        self.geometry, self._slots = survey(model)
        # Every binding in force, whichever thread made it.
        self._bindings: list[Rows] = []
        self._signature = inspect.signature(model.forward)
        self._layers = [x for x in model.modules() if isinstance(x, GradientCheckpointingLayer)]
        model.register_forward_pre_hook(self._enter, with_kwargs=True)

    @classmethod
    def load(
        cls, name: str, *, dtype: str = "float32", attention_name: str = "sdpa", device: str | torch.device = "cpu"
    ) -> Self:
        """Load a known model, a local folder, a GGUF file or a hub id. Raises :class:`ModelNotFound` and others."""
        if dtype not in DTYPES:
            raise BadValue(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
        where = usable_device(device)
        found = resolve(name)
        model, tokenizer = load_causal(found, DTYPES[dtype])
        model.to(where)  # type: ignore[arg-type]
        shown = public_name(found.name)
        return cls(model, tokenizer, name=shown, attention_name=attention_name, checkpoint_on_disk=found)

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits over the checkpoint's tensors: on disk where it was loaded from, else in memory."""
        if self._checkpoint is None:
            return fingerprint_state(self.model.state_dict(), tied=self.model.all_tied_weights_keys)
        return fingerprint(self._checkpoint)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """64 hex digits over what the tokenizer does."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, tied ones once."""
        return sum(x.numel() for x in self.model.parameters())

    @property
    def num_bytes(self) -> int:
        """Bytes that the parameters take in memory."""
        return sum(x.numel() * x.element_size() for x in self.model.parameters())

    @contextmanager
    def bind(self, prefix: VirtualTokens | Sequence[VirtualTokens | None] | None, *, copies: int = 1) -> Iterator[None]:
        """Let every forward of the model in this block, and in this thread, carry ``prefix``.

        Soft prompts are lowered on entry, once each, so that their tokens are computed once and not once a row.

        One prefix serves batches of any size; a sequence names one prefix (or None) for each row, ``copies`` times
        over in a row, which is how beam search lays its beams out. The text of a row starts at its own prefix's
        ``text_start``, whatever the padding and the neighbours; position ids given to the model count text tokens.
        None is the bare model, said on purpose: while another thread has something bound, a forward of a thread that
        has nothing raises :class:`LostBinding`, because a thread started inside a block does not inherit it.
        Raises :class:`GeometryMismatch`, :class:`AlreadyBound`, and inside, :class:`BatchMismatch`.
        """
        rows = self._rows(prefix, copies)
        bound = _BOUND.get()
        if any(key == id(self) for key, _ in bound):
            raise AlreadyBound(f"{self.name} already carries prefixes here; leave the outer bind() first")
        token = _BOUND.set((*bound, (id(self), rows)))
        self._bindings.append(rows)
        try:
            yield
        finally:
            self._bindings.remove(rows)
            _BOUND.reset(token)

    def _rows(self, prefix: VirtualTokens | Sequence[VirtualTokens | None] | None, copies: int) -> Rows:
        if prefix is None:
            return Rows([], None, self.device)
        if isinstance(prefix, VirtualTokens):
            return Rows([self.lower(prefix)], None, self.device)
        distinct: dict[int, tuple[int, KVPrefix]] = {}
        row_of: list[int] = []
        for one in _several(prefix):
            if one is None:
                row_of += [-1] * copies
                continue
            if id(one) not in distinct:
                distinct[id(one)] = (len(distinct), self.lower(one))
            row_of += [distinct[id(one)][0]] * copies
        if not row_of:
            raise BatchMismatch("bind() was given no rows; give one prefix, or one a row")
        return Rows([one for _, one in distinct.values()], row_of, self.device)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if ARGUMENT in kwargs:
            return args, kwargs
        rows = next((rows for key, rows in _BOUND.get() if key == id(self)), None)
        if rows is None and self._bindings:
            raise LostBinding(
                f"{self.name} has prefixes bound in another thread or task, and none in this one; "
                "call bind() where the model runs, bind(None) for the bare model"
            )
        if rows is None:
            return args, {**kwargs, ARGUMENT: Run(slots=self._slots)}
        self._refuse_reentrant()
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        tokens = given.get("input_ids")
        tokens = given["inputs_embeds"] if tokens is None else tokens
        rows.check(tokens.shape[0])
        positions = text_positions(tokens, given) + rows.pick(rows.start_U)[:, None]
        self._check_positions(positions)
        run = Run(slots=self._slots, rows=rows, positions_BT=positions)
        return (), {**given, "position_ids": positions, ARGUMENT: run}

    def _check_positions(self, positions_BT: Tensor) -> None:
        limit = self.geometry.max_positions
        if limit is not None and int(positions_BT.max()) >= limit:
            raise TextTooLong(
                f"the text reaches position {int(positions_BT.max())} behind its virtual tokens, {self.name} has "
                f"{limit} positions; shorten the text or the prefix"
            )

    def _refuse_reentrant(self) -> None:
        if not torch.is_grad_enabled():
            return
        for layer in self._layers:
            if layer.gradient_checkpointing and layer.training:
                keywords = getattr(layer._gradient_checkpointing_func, "keywords", {})
                if keywords.get("use_reentrant") is not False:
                    raise ReentrantCheckpointing(
                        "activation checkpointing is on with use_reentrant=True, which forgets the prefix; "
                        "call FrozenModel.checkpoint_activations(), or pass use_reentrant=False"
                    )

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations (non-reentrant).

        Only the layers' own flags change: the model's dropout stays off.
        """
        for layer in self._layers:
            layer.gradient_checkpointing = on
            vars(layer)["_gradient_checkpointing_func"] = partial(checkpoint, use_reentrant=False)
            layer.training = on

    def read(self, ids: Sequence[int]) -> KVPrefix:
        """The keys and values of a text of P tokens, as a prefix that continues it (``text_start`` = P). Exact.

        It carries ``window`` visibility: that is what the model itself would see. (Li & Liang 2021, section 7.4.)
        """
        with torch.no_grad():
            return self.lower(SoftPrompt(embeddings_PE=self.embed(ids)))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """``[P, E]``: the input embeddings of token ids, as the model's first layer receives them."""
        tokens = torch.tensor([list(ids)], device=self.device)
        embeddings: Tensor = self.model.get_input_embeddings()(tokens)[0]
        return embeddings

    @cached_property
    def embedding_rms(self) -> float:
        """The root mean square of the numbers in the model's input embeddings: the scale that prompts live on."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        some = range(0, vocabulary, max(1, vocabulary // 4_096))
        return float(self.embed(some).float().pow(2).mean().sqrt())

    def lower(self, tokens: VirtualTokens) -> KVPrefix:
        """Virtual tokens as keys and values: a soft prompt by one forward pass over it alone, with its graph.

        In a causal decoder nothing after a leading prompt changes it, so the result is exact: text behind it gives the
        logits that it gives behind the embeddings, and the same gradients. It carries ``window`` visibility. Keys and
        values come as they are. Raises :class:`CannotLower`, and :class:`GeometryMismatch` for another model's tokens.
        """
        tokens.check(self.geometry)
        if isinstance(tokens, KVPrefix):
            return tokens
        refuse_lowering(self.model)
        return lowered(self.model, self._slots, self.geometry, tokens.embeddings_PE)

    @contextmanager
    def scored(self, mask_BT: Tensor) -> Iterator[None]:
        """Let the language-modelling head see only the marked positions: ``logits`` become ``[1, marked, V]``.

        Whatever the model does to its logits afterwards is left to it, so the numbers are the model's own.
        """

        def narrow(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0][mask_BT][None], *args[1:])

        handle = self.model.get_output_embeddings().register_forward_pre_hook(narrow)
        try:
            yield
        finally:
            handle.remove()


def public_name(name: str) -> str:
    """What a model is called in files that travel: a folder or file loses the path to it."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def text_positions(tokens: Tensor, given: dict[str, Any]) -> Tensor:
    """``[B or 1, T]``: the number of each text token in its row, counted from the row's first real token."""
    if given.get("position_ids") is not None:
        positions: Tensor = given["position_ids"]
        return positions
    mask = given.get("attention_mask")
    num_tokens = tokens.shape[1]
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -num_tokens:]
    past = given.get("past_key_values")
    start = 0 if past is None else int(past.get_seq_length())
    return torch.arange(start, start + num_tokens, device=tokens.device)[None]


def _several(prefix: object) -> Sequence[VirtualTokens | None]:
    """Rows of virtual tokens; raises :class:`BadValue` for what is none, a path or a Tuned, say."""
    rows: Sequence[Any] = prefix if isinstance(prefix, list | tuple) else [prefix]
    wrong = next((type(one).__name__ for one in rows if not (one is None or isinstance(one, VirtualTokens))), None)
    if wrong is not None:
        raise BadValue(f"bind() was given a {wrong}, expected virtual tokens; write epigraph.load(path).prefix")
    return rows
