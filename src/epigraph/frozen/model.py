"""A frozen language model that prefixes can be bound to.

Knows loading, freezing, identity and binding; does not know how prefixes are made or what text means.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from epigraph.errors import AlreadyBound, BadValue, BatchMismatch, LostBinding, TextTooLong
from epigraph.frozen import attention, cache, placed, scored
from epigraph.frozen.attention import ARGUMENT, Run
from epigraph.frozen.cache import Held
from epigraph.frozen.fingerprint import fingerprint, fingerprint_state, tokenizer_fingerprint
from epigraph.frozen.geometry import survey, text_embeddings
from epigraph.frozen.loading import load, usable_device
from epigraph.frozen.lower import lowered, read_alone, refuse_lowering, refuse_placing
from epigraph.frozen.packing import packing_of
from epigraph.frozen.recompute import recompute, refuse_reentrant
from epigraph.frozen.resolve import Checkpoint, public_name, resolve
from epigraph.frozen.rows import Bound, Rows, rows_for
from epigraph.virtual import KVPrefix, SoftPrompt, VirtualTokens

# What is bound in this thread or task, by model; a forward reads it once, on entry, and carries it from there.
_BOUND: ContextVar[tuple[tuple[int, Rows], ...]] = ContextVar("epigraph_bound", default=())

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenModel:
    """A language model, frozen, in eval mode, whose attention takes virtual keys and values.

    ``kind`` is causal, encoder-decoder, masked (an encoder with a language-modelling head) or encoder (without one).
    ``layers`` are its blocks, an encoder's first; where layers stand within layers, all of them. ``slots`` are its
    attention modules' places, ``position_offset`` is the number of the first position, None where none can be given.
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
        found = survey(model)
        self.geometry, self.kind, self.slots = found.geometry, found.kind, found.slots
        self.position_offset = found.position_offset
        # Every binding in force, whichever thread made it.
        self._bindings: list[Rows] = []
        self.layers = [x for x in model.modules() if isinstance(x, GradientCheckpointingLayer)]
        self.text_embeddings = text_embeddings(model)
        scored.narrow_head(model)
        # generate() calls an encoder alone, and so do heads. Other parts of a model are not ways in.
        ways_in = {"encoder-decoder": [model.get_encoder()], "causal": []}.get(self.kind, [model.base_model])
        self._signatures = {x: inspect.signature(x.forward) for x in (model, *ways_in)}
        for module in self._signatures:
            module.register_forward_pre_hook(self._enter, with_kwargs=True)

    @classmethod
    def load(
        cls, name: str, *, dtype: str = "float32", attention_name: str = "sdpa", device: str | torch.device = "cpu"
    ) -> Self:
        """Load a known model, a local folder, a GGUF file or a hub id. Raises :class:`ModelNotFound` and others."""
        if dtype not in DTYPES:
            raise BadValue(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
        where = usable_device(device)
        found = resolve(name)
        model, tokenizer = load(found, DTYPES[dtype])
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

    @cached_property
    def packs(self) -> bool:
        """Whether rows are packed where logits are :meth:`scored`, found by trying, once: no number changes."""
        return self.kind == "causal" and scored.can_pack(self.model, self.slots, self.position_offset)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    @cached_property
    def num_parameters(self) -> int:
        """Parameters of the model, tied ones once."""
        return sum(x.numel() for x in self.model.parameters())

    @cached_property
    def num_bytes(self) -> int:
        """Bytes that the parameters take in memory."""
        return sum(x.numel() * x.element_size() for x in self.model.parameters())

    @contextmanager
    def bind(
        self,
        prefix: Bound,
        *,
        copies: int = 1,
        sources: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Let every forward of the model in this block, and in this thread, carry ``prefix``.

        Soft prompts in front are lowered on entry, once each and not once a row; placed ones fill the text's slots.

        One prefix serves batches of any size; a sequence names one prefix (or None) for each row, ``copies`` times
        over in a row, which is how beam search lays its beams out. The text of a row starts at its own prefix's
        ``text_start``, whatever the padding and the neighbours; position ids given to the model count text tokens.
        ``Stacked`` (rows.py) is one a row too, of users whose virtual tokens are one tensor.
        ``sources`` are the numbers of source tokens, one a row, for an infix, which stands behind them.
        None is the bare model, said on purpose: while another thread has something bound, a forward of a thread that
        has nothing raises :class:`LostBinding`, because a thread started inside a block does not inherit it.
        Raises :class:`GeometryMismatch`, :class:`AlreadyBound`, and inside, :class:`BatchMismatch`.
        """
        rows = rows_for(prefix, self.carried, self.device, copies=copies, sources=sources)
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

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if ARGUMENT in kwargs:
            return args, kwargs
        rows = next((rows for key, rows in _BOUND.get() if key == id(self)), None)
        if rows is None and self._bindings:
            raise LostBinding(
                f"{self.name} has prefixes bound in another thread or task, and none in this one; "
                "call bind() where the model runs, bind(None) for the bare model"
            )
        given = self._signatures[module].bind_partial(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        held = cache.held(given.get("past_key_values"), rows)
        if rows is None or not rows.tokens:
            placed.refuse_slots(given.get("input_ids"))
        if rows is None:
            return args, {**kwargs, ARGUMENT: Run(slots=self.slots)}
        refuse_reentrant(self.layers)
        tokens = next(given[x] for x in ("input_ids", "inputs_embeds", "decoder_input_ids") if given.get(x) is not None)
        return (), self._carrying(rows.for_batch(tokens.shape[0]), given, tokens, held)

    def _carrying(self, rows: Rows, given: dict[str, Any], tokens: Tensor, held: Held) -> dict[str, Any]:
        """The arguments of a forward, with positions, with slots filled, and with what its attention is to carry."""
        positions = None
        reads_text = self.kind != "encoder-decoder" or given.get("decoder_input_ids") is not tokens
        if reads_text and self.geometry.position_kind != "relative":
            positions = self._positions(rows, given, tokens)
        ids = given.get("input_ids")
        has_slots = placed.has_slots(ids)
        expects_slots = reads_text and any(x is not None for x in rows.prompts)
        if ids is not None and (has_slots or expects_slots) and placed.past_length(given) == 0:
            placed.note_slots(rows, ids)
        # Steps from a cache have nothing to fill.
        if ids is not None and has_slots:
            given |= {"inputs_embeds": placed.filled(self.text_embeddings, rows, ids), "input_ids": None}
        if positions is not None and self.position_offset is not None:
            given["position_ids"] = positions + self.position_offset
        now, packing = scored.wanted(self.model), None
        if now is not None and self.packs and (packing := packing_of(given)) is not None:
            now.packing, given = packing, packing.arguments(given)
        at = placed.infix_columns(rows)
        run = Run(slots=self.slots, rows=rows, positions_BT=positions, columns_BP=at, packing=packing, held=held)
        return {**given, ARGUMENT: run}

    def _positions(self, rows: Rows, given: dict[str, Any], tokens: Tensor) -> Tensor:
        """``[B, T]``, counted from each row's first real token; raises where they do not fit, or cannot be given."""
        mask = given.get("attention_mask")
        if self.position_offset is None and isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask[:, 0].all()):
            raise BatchMismatch(
                f"{self.name} takes no positions and the batch is padded on the left, which would shift its text; "
                "pad on the right"
            )
        positions = placed.text_positions(tokens, given) + rows.pick(rows.start_U)[:, None]
        limit = self.geometry.max_positions
        if limit is not None and int(positions.max()) >= limit:
            raise TextTooLong(
                f"the text reaches position {int(positions.max())} behind its virtual tokens, {self.name} has "
                f"{limit} positions; shorten the text or the prefix"
            )
        return positions

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations (non-reentrant).

        Only the layers' own flags change: the model's dropout stays off.
        """
        recompute(self.layers, on)

    @cached_property
    def decoder_start(self) -> tuple[int, ...]:
        """The ids that a decoder beside an encoder begins with, before the answer: one, or two where one is forced."""
        config = self.model.generation_config
        forced = config.forced_bos_token_id
        start = config.decoder_start_token_id
        return (
            int(start if start is not None else self.model.config.bos_token_id),
            *([] if forced is None else [forced]),
        )

    def read(self, ids: Sequence[int]) -> KVPrefix:
        """The keys and values of a text of P tokens. (Li & Liang 2021, section 7.4.)

        In a causal decoder they continue it exactly (``text_start`` = P, ``window`` visibility: what the model itself
        would see). With an encoder they are what each site has for a text of its own: real first values, and no more.
        """
        with torch.no_grad():
            if self.kind == "causal":
                return self.lower(SoftPrompt(embeddings_PE=self.embed(ids)))
            return read_alone(self.model, self.slots, self.geometry, ids)

    def embed(self, ids: Sequence[int]) -> Tensor:
        """``[P, E]``: the input embeddings of token ids, as the layers that read the source receive them."""
        tokens = torch.tensor([list(ids)], device=self.device)
        embeddings: Tensor = self.text_embeddings(tokens)[0]
        return embeddings

    @cached_property
    def embedding_rms(self) -> float:
        """The root mean square of the numbers in the model's input embeddings: the scale that prompts live on."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        some = range(0, vocabulary, max(1, vocabulary // 4_096))
        return float(self.embed(some).float().pow(2).mean().sqrt())

    def lower(self, tokens: VirtualTokens, *, several: bool = False) -> KVPrefix:
        """Virtual tokens as keys and values: a soft prompt by one forward pass over it alone, with its graph.

        In a causal decoder nothing after a leading prompt changes it, so the result is exact: text behind it gives the
        logits that it gives behind the embeddings, and the same gradients. It carries ``window`` visibility. Keys and
        values come as they are. Raises :class:`CannotLower`, and :class:`GeometryMismatch` for another model's tokens.
        ``several``: those of several users in one, who stand in front in every tensor.
        """
        one = tokens.map(lambda x: x[0]) if several else tokens
        one.check(self.geometry)
        if isinstance(tokens, KVPrefix):
            return tokens
        refuse_lowering(self.model, self.kind, tokens)
        return lowered(self.model, self.slots, self.geometry, tokens.embeddings_PE)

    def carried(self, tokens: VirtualTokens, *, several: bool = False) -> VirtualTokens:
        """Virtual tokens as a forward carries them: lowered, or as they are where they stand at slots of the text."""
        if tokens.placed:
            (tokens.map(lambda x: x[0]) if several else tokens).check(self.geometry)
            refuse_placing(self.model)
            return tokens
        return self.lower(tokens, several=several)

    def hidden(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """``[B, T, D]``: what an encoder's last layer makes of a text; what a head reads."""
        states: Tensor = self.model.base_model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return states

    def scored(self, mask_BT: Tensor) -> AbstractContextManager[None]:
        """Let the language-modelling head see only the marked positions: ``logits`` become ``[1, marked, V]``.

        Whatever the model does to its logits afterwards is left to it, so the numbers are the model's own. Bound
        forwards of a causal decoder are packed meanwhile, unless :attr:`packs` is False.
        """
        return scored.scored(self.model, mask_BT)
