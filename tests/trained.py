"""Small encoder-decoder and masked models, trained from scratch for a minute and kept, because no package ships any.

They are folders as transformers writes them. This module knows texts and training, no virtual tokens and no test.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import torch
from filelock import FileLock
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from epigraph.home import home
from epigraph.tasks.catalogue import find

# Files of $EPIGRAPH_DATA and, for each, the fields that are text; a field may hold several.
FILES = {"e2e/train": ("source", "references"), "webnlg2017/train": ("references",)}
MAX_ROWS, MAX_TEXTS_A_FIELD, HELD_OUT_EVERY = 8_000, 2, 10
MAX_VOCABULARY, NUM_SENTINELS, MAX_ALPHABET = 2_000, 32, 120
MIN_TOKENS, MAX_TOKENS, NUM_POSITIONS = 4, 96, 256
D_MODEL, LAYERS = 128, 2
IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """What the models are trained on, and texts that they never see."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Token ids that go in, and token ids that are wanted (``IGNORED`` where none is)."""

    ids: list[int]
    labels: list[int]


Objective = Callable[[list[int], PreTrainedTokenizerFast, Random], Pair]


def trained_t5(objective: Literal["span", "lm"]) -> Path:
    """The folder of a model like T5 v1.1: gated GELU, 6 heads of ``d_kv`` 32 although ``d_model`` is 128.

    ``span`` is trained on span corruption; ``lm`` is the same weights continued as a prefix LM, as Lester et al. 2021
    (section 2.2) adapt theirs. The output layer is tied to the embeddings, where v1.1 has its own: transformers 5 ties
    every T5, whatever its configuration says.
    """
    return kept(f"t5-{objective}", {"span": _make_t5, "lm": _adapt_t5}[objective])


def trained_bart() -> Path:
    """The folder of a model like BART: learned positions, trained to write a text of which spans are masked."""
    return kept("bart", _make_bart)


def trained_bert() -> Path:
    """The folder of a model like BERT: 3 layers, lower-cased WordPiece, trained to find masked words."""
    return kept("bert", _make_bert)


def kept(name: str, make: Callable[[Path, Sequence[str]], None]) -> Path:
    """The folder that ``make`` fills from the training texts, made once for these texts and this file's content.

    It lies below :func:`epigraph.home.home` and appears whole; a second process waits for the first.
    """
    texts = read_texts()
    folder = home() / "trained" / f"{name}-{_key(texts)}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as unfinished:
                make(Path(unfinished, name), texts.train)
                Path(unfinished, name).replace(folder)
    return folder


def _key(texts: Texts) -> str:
    """The recipe is this file: a model made by an earlier one is never taken for one made by this."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(json.dumps([texts.train, texts.held_out]).encode())
    return digest.hexdigest()[:16]


def read_texts() -> Texts:
    """Texts of ``$EPIGRAPH_DATA`` where it holds any of ``FILES``, else the cards.

    One row in ten is held out: no training text is one of its texts.
    """
    rows = list(_data_rows()) or [
        (example.source, *example.references) for split in ("train", "dev") for example in find("cards").load(split)
    ]
    held_out = dict.fromkeys(text for row in rows[::HELD_OUT_EVERY] for text in row)
    train = (text for row in rows for text in row if text not in held_out)
    return Texts(train=tuple(train), held_out=tuple(held_out))


def _data_rows() -> Iterator[tuple[str, ...]]:
    folder = os.environ.get("EPIGRAPH_DATA")
    for name, fields in FILES.items() if folder else ():
        file = Path(folder or "", f"{name}.jsonl.gz")
        if file.is_file():
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                yield from (_texts(json.loads(line), fields) for line, _ in zip(lines, range(MAX_ROWS), strict=False))


def _texts(row: dict[str, str | list[str]], fields: Sequence[str]) -> tuple[str, ...]:
    found = [[value] if isinstance(value := row[field], str) else value for field in fields]
    return tuple(text for texts in found for text in texts[:MAX_TEXTS_A_FIELD])


def span_corruption(ids: list[int], words: PreTrainedTokenizerFast, draw: Random) -> Pair:
    """T5's objective: 15 % of the tokens go, in spans of 3 on average; the labels have each behind its sentinel."""
    first = words.convert_tokens_to_ids("<extra_id_0>")
    inputs, labels, at = [], [], 0
    num_hidden = max(1, round(0.15 * len(ids)))
    spans = _spans(len(ids), _parts(num_hidden, max(1, round(num_hidden / 3)), draw), draw)
    for sentinel, (start, stop) in enumerate(spans, first):
        inputs += [*ids[at:start], sentinel]
        labels += [sentinel, *ids[start:stop]]
        at = stop
    return Pair(ids=[*inputs, *ids[at:], words.eos_token_id], labels=[*labels, first + len(spans), words.eos_token_id])


def prefix_lm(ids: list[int], words: PreTrainedTokenizerFast, draw: Random) -> Pair:
    """A text cut at a random place: its beginning goes in, its rest is wanted."""
    cut = draw.randrange(1, len(ids))
    return Pair(ids=[*ids[:cut], words.eos_token_id], labels=[*ids[cut:], words.eos_token_id])


def infilling(ids: list[int], words: PreTrainedTokenizerFast, draw: Random) -> Pair:
    """BART's objective: 30 % of the tokens go, in spans of Poisson(3) tokens with one mask a span; all is wanted.

    Ours has no spans of no tokens, and leaves sentences in their order.
    """
    inputs, at = [], 0
    for start, stop in _spans(len(ids), _poisson_parts(max(1, round(0.3 * len(ids))), draw), draw):
        inputs += [*ids[at:start], words.mask_token_id]
        at = stop
    begin, end = words.bos_token_id, words.eos_token_id
    return Pair(ids=[begin, *inputs, *ids[at:], end], labels=[begin, *ids, end])


def masking(ids: list[int], words: PreTrainedTokenizerFast, draw: Random) -> Pair:
    """BERT's objective: 15 % of the tokens are wanted; of them 80 % are masked, 10 % random, 10 % as they were."""
    inputs, labels = list(ids), [IGNORED] * len(ids)
    for at in draw.sample(range(len(ids)), max(1, round(0.15 * len(ids)))):
        labels[at], luck = ids[at], draw.random()
        if luck < 0.9:
            inputs[at] = words.mask_token_id if luck < 0.8 else draw.randrange(len(words))
    return Pair(ids=[words.cls_token_id, *inputs, words.sep_token_id], labels=[IGNORED, *labels, IGNORED])


def _spans(num_tokens: int, lengths: Sequence[int], draw: Random) -> list[tuple[int, int]]:
    """Random ``(start, stop)`` of spans of those lengths, in that order, with a token or more between two."""
    gaps = _parts(num_tokens - sum(lengths) + 2, len(lengths) + 1, draw)
    found, at = [], gaps[0] - 1
    for length, gap in zip(lengths, gaps[1:], strict=True):
        found.append((at, at + length))
        at += length + gap
    return found


def _parts(total: int, count: int, draw: Random) -> list[int]:
    """``total`` as a sum of ``count`` numbers from 1 up, each way as likely as any other."""
    cuts = sorted(draw.sample(range(1, total), count - 1))
    return [stop - start for start, stop in zip([0, *cuts], [*cuts, total], strict=True)]


def _poisson_parts(total: int, draw: Random) -> list[int]:
    """``total`` as a sum of numbers that are Poisson(3) but for none of 0 and a last one that is cut."""
    found: list[int] = []
    lengths = range(1, 10)
    while (left := total - sum(found)) > 0:
        [length] = draw.choices(lengths, [3**k / math.factorial(k) for k in lengths])
        found.append(min(length, left))
    return found


def collate(pairs: Sequence[Pair], pad: int) -> dict[str, Tensor]:
    """Right-padded ``input_ids``, ``attention_mask`` and ``labels``, each ``[B, T]``, int64."""

    def padded(rows: list[list[int]], value: int) -> Tensor:
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])

    return {
        "input_ids": padded([pair.ids for pair in pairs], pad),
        "attention_mask": padded([[1] * len(pair.ids) for pair in pairs], 0),
        "labels": padded([pair.labels for pair in pairs], IGNORED),
    }


def tokens_of(texts: Sequence[str], words: PreTrainedTokenizerFast) -> list[list[int]]:
    """Token ids of the texts that have ``MIN_TOKENS``, cut to ``MAX_TOKENS``, without special tokens."""
    rows = words(list(texts), add_special_tokens=False).input_ids
    return [row[:MAX_TOKENS] for row in rows if len(row) >= MIN_TOKENS]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """One thread and that seed within, so that weights depend on nothing else; both as they were behind it."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(num_threads)


def fit(
    model: PreTrainedModel,
    words: PreTrainedTokenizerFast,
    texts: Sequence[str],
    objective: Objective,
    *,
    steps: int,
    lr: float,
    batch_size: int = 32,
) -> None:
    """Train ``model`` in place, in fp32: linear warm-up over a tenth of the steps, then linear decay to 0.

    In eval mode: a minute has no room for dropout, but the configuration keeps it, so that a frozen model that is put
    into train mode by mistake answers differently. Adafactor moves a tensor in proportion to its size: with Adam at
    one rate, T5's embeddings (RMS 1) stand still while the rest learns, and a minute ends above unigram entropy.
    """
    model.eval()
    draw = Random(0)
    batches = _batches(tokens_of(texts, words), batch_size, draw)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
    )
    for _ in range(steps):
        pairs = [objective(ids, words, draw) for ids in next(batches)]
        optimizer.zero_grad()
        model(**collate(pairs, words.pad_token_id)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _batches(rows: list[list[int]], size: int, draw: Random) -> Iterator[list[list[int]]]:
    """Batches without end, each of rows of about one length, so that little is padding."""
    while True:
        draw.shuffle(rows)
        for at in range(0, len(rows), 32 * size):
            pool = sorted(rows[at : at + 32 * size], key=len)
            batches = [pool[start : start + size] for start in range(0, len(pool), size)]
            draw.shuffle(batches)
            yield from batches


def _make_t5(folder: Path, texts: Sequence[str]) -> None:
    words = t5_words(texts)
    with seeded(0):
        config = T5Config(
            vocab_size=len(words),
            d_model=D_MODEL,
            d_kv=32,
            num_heads=6,
            d_ff=2 * D_MODEL,
            num_layers=LAYERS,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=words.pad_token_id,
        )
        model = T5ForConditionalGeneration(config)
        fit(model, words, texts, span_corruption, steps=420, lr=0.03)
    _save(folder, model, words)


def _adapt_t5(folder: Path, texts: Sequence[str]) -> None:
    words = AutoTokenizer.from_pretrained(trained_t5("span"))
    model = AutoModelForSeq2SeqLM.from_pretrained(trained_t5("span"))
    with seeded(0):
        fit(model, words, texts, prefix_lm, steps=110, lr=0.03)
    _save(folder, model, words)


def _make_bart(folder: Path, texts: Sequence[str]) -> None:
    words = bart_words(texts)
    with seeded(0):
        config = BartConfig(
            vocab_size=len(words),
            d_model=D_MODEL,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=4 * D_MODEL,
            decoder_ffn_dim=4 * D_MODEL,
            max_position_embeddings=NUM_POSITIONS,
        )
        model = BartForConditionalGeneration(config)
        fit(model, words, texts, infilling, steps=200, lr=0.05)
    _save(folder, model, words)


def _make_bert(folder: Path, texts: Sequence[str]) -> None:
    words = bert_words(texts)
    with seeded(0):
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=D_MODEL,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=4 * D_MODEL,
            max_position_embeddings=NUM_POSITIONS,
        )
        model = BertForMaskedLM(config)
        fit(model, words, texts, masking, steps=350, lr=0.05)
    _save(folder, model, words)


def _save(folder: Path, model: PreTrainedModel, words: PreTrainedTokenizerFast) -> None:
    model.save_pretrained(folder)
    words.save_pretrained(folder)


# Every tokenizer is trained as BPE, though T5's is a unigram model and BERT's a WordPiece one: the tokenizers package
# trains BPE without prefixes the same way each time, and the other two not, which would make every model another one.


def t5_words(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Like SentencePiece: blanks are a part of tokens, runs of them one, line breaks too; ``</s>`` at the end."""
    sentinels = [f"<extra_id_{number}>" for number in range(NUM_SENTINELS)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    _train(tokenizer, texts, ["<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens(sentinels)
    tokenizer.post_processor = _template(tokenizer, "$A </s>", "$A </s> $B </s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=sentinels,
        model_input_names=["input_ids", "attention_mask"],
    )


def bart_words(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level: any text comes back as it was, between ``<s>`` and ``</s>``; ids of specials are BART's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    _train(tokenizer, texts, special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.post_processor = _template(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=NUM_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )


def bert_words(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Lower-cased WordPiece between ``[CLS]`` and ``[SEP]``: ``##`` marks a piece within a word."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace()])
    _train(tokenizer, texts, [])
    pieces = (x.removeprefix("▁") if x.startswith("▁") else f"##{x}" for x in tokenizer.get_vocab())
    letters = [x for x in tokenizer.get_vocab() if len(x) == 1 and x != "▁"]
    found = sorted({*pieces, *letters} - {""})
    tokenizer.model = models.WordPiece({x: i for i, x in enumerate([*special, *found])}, unk_token="[UNK]")
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.post_processor = _template(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=NUM_POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _train(tokenizer: Tokenizer, texts: Sequence[str], special: list[str], **options: object) -> None:
    # A word of few texts is seen too rarely to be learnt whole: the cards get some 660 tokens.
    size = max(400, min(MAX_VOCABULARY, sum(map(len, texts)) // 100)) - NUM_SENTINELS
    options = options or {"limit_alphabet": MAX_ALPHABET}
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)


def _template(tokenizer: Tokenizer, single: str, pair: str) -> processors.TemplateProcessing:
    names = {part.partition(":")[0] for part in pair.split() if not part.startswith("$")}
    special = [(name, tokenizer.token_to_id(name)) for name in sorted(names)]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
