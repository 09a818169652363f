"""`epigraph vllm`: what a stock vLLM server is started with, and a request to it. vLLM need not be installed here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from epigraph.cli import show
from epigraph.errors import CannotServe, ModelNotFound

if TYPE_CHECKING:
    from epigraph.frozen.identity import Identity

Flag = typer.Option
app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

PREFIXES = typer.Argument(help="Folder or fsspec address of artifacts.", metavar="PREFIXES")


@app.command()
def config(
    prefixes: Annotated[str, PREFIXES],
    cache_bytes: Annotated[int, Flag(help="Bytes of prefixes that a worker holds.")] = 1 << 30,
    recheck_seconds: Annotated[float, Flag(help="How old the last look at an artifact may be.")] = 1.0,
    allow_base: Annotated[str | None, Flag(help="Fingerprint of a base with other weights to admit.")] = None,
) -> None:
    """Print the JSON for vllm serve --kv-transfer-config, in one line."""
    from epigraph.engine.vllm_request import transfer_config

    show.print_json_line(
        transfer_config(prefixes, cache_bytes=cache_bytes, recheck_seconds=recheck_seconds, allow_base=allow_base)
    )


@app.command()
def request(
    prefixes: Annotated[str, PREFIXES],
    prefix: Annotated[str, typer.Argument(help="The prefix id: its path below PREFIXES.", metavar="ID")],
    text: Annotated[str, typer.Argument(help="The source, for the artifact's own template.", metavar="TEXT")],
    version: Annotated[str, Flag(help="A version of the prefix.")] = "",
    tenant: Annotated[str, Flag(help="Whose request it is; nothing is shared between tenants.")] = "",
    num_beams: Annotated[int | None, Flag(help="1 is greedy, for a task that decodes with beams.")] = None,
    max_new_tokens: Annotated[int | None, Flag(help="Longest answer, in tokens.")] = None,
    model: Annotated[str | None, Flag(help="Where the base is, if it is not found by its name.")] = None,
    allow_base: Annotated[str | None, Flag(help="Fingerprint of a base with other weights to admit.")] = None,
) -> None:
    """Print the body of a POST to /v1/completions, in one line. The base's tokenizer is read, no weights are loaded."""
    import asyncio

    from epigraph.cli.options import changed_decoding
    from epigraph.engine.claim import check_id, salt_key
    from epigraph.engine.servable import refuse_unservable_contract
    from epigraph.engine.shelf import Shelf
    from epigraph.engine.vllm_prefixes import Prefixes
    from epigraph.engine.vllm_request import completion_body
    from epigraph.tuned import encoded

    check_id(prefix, version, tenant)
    shelf = Shelf(prefixes)
    base = _base(model or shelf.open(prefix, version).artifact.base_name, is_given=model is not None)
    known = asyncio.run(Prefixes(shelf, base, allow_base=allow_base).get(prefix, version))
    if known.placed is not None:
        raise CannotServe(
            f"the virtual tokens of {known.claim.label} stand inside the text, which the server's JSON cannot say; "
            "ask from Python, with VLLMEngine (docs/vllm.md)"
        )
    contract = known.codec.contract
    decoding = changed_decoding(contract.decoding, num_beams=num_beams, max_new_tokens=max_new_tokens)
    refuse_unservable_contract(contract.model_copy(update={"decoding": decoding}))
    claim = known.claim.model_copy(update={"tenant": tenant})
    ids, end = encoded(known.codec, text).ids, base.tokenizer.eos_token_id
    show.print_json_line(completion_body(claim, ids, decoding, salt_key(), stop=contract.stop, end_token=end))


def _base(name: str, *, is_given: bool) -> Identity:
    from epigraph.frozen.identity import identify

    try:
        return identify(name)
    except ModelNotFound as missing:
        if is_given:
            raise
        raise ModelNotFound(f"{missing} (the artifact's base; say where it is with --model)") from None
