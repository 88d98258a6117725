"""`weft datasets`: what is kept, held, checked and cleared away."""

from typing import Annotated

import typer

from weft.cache.v1 import retention_pb2, service_pb2
from weft_client.cli.datasets import DatasetArgument, fields
from weft_client.cli.output import as_dict, print_json, print_list, print_one, size, stdout, time
from weft_client.cli.session import JsonFlag, connected
from weft_client.cli.waiting import wait
from weft_client.names import short_id

PinArgument = Annotated[str, typer.Argument(help="Name of the pin, of your own choice.")]


def verify_dataset(dataset: DatasetArgument, as_json: JsonFlag = False) -> None:
    """Read every byte and compare every checksum; exit 1 where something is wrong."""
    with connected() as client:
        operation = client.datasets.start_verification(dataset)
        found = wait(client, operation, dataset, quiet=as_json)
    assert isinstance(found, service_pb2.VerifyDatasetResponse)
    if as_json:
        print_json(as_dict(found))
    else:
        for problem in found.problems:
            stdout().print(problem, soft_wrap=True)
        if not found.problems:
            stdout().print(f"{found.num_shards} shards, {size(found.size_bytes)}: all well")
    if found.problems:
        raise typer.Exit(1)


def keep_dataset(
    dataset: DatasetArgument,
    days: Annotated[int, typer.Option(min=0, help="Days since it was sealed, or last took a shard.")] = 0,
    last: Annotated[int, typer.Option(min=0, help="While fewer sealed ones of the same tag are newer.")] = 0,
    by: Annotated[str, typer.Option(metavar="KEY", help="The tag that --last counts by.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Say how long a dataset is kept; without an option, for ever. `weft datasets collect` deletes what is over."""
    with connected() as client:
        found = client.datasets.keep(dataset, days=days, last=last, last_tag=by)
    print_one(found, fields(found), as_json=as_json)


def hold_dataset(dataset: DatasetArgument, pin: PinArgument, as_json: JsonFlag = False) -> None:
    """Keep a dataset from being deleted until the pin is released; runs and indexes hold theirs by themselves."""
    with connected() as client:
        found = client.datasets.hold(dataset, pin)
    print_one(found, [("holder", found.holder), ("since", time(found.create_time))], as_json=as_json)


def release_dataset(dataset: DatasetArgument, pin: PinArgument, as_json: JsonFlag = False) -> None:
    """Give up a pin."""
    with connected() as client:
        client.datasets.release(dataset, pin)
    if as_json:
        print_json({"released": dataset})
    else:
        stdout().print(f"{dataset} is not held by {short_id(pin)} any more")


def list_holds(dataset: DatasetArgument, as_json: JsonFlag = False) -> None:
    """List who holds a dataset: runs and operations that have not ended, and pins."""
    with connected() as client:
        columns = {"holder": lambda each: each.holder, "since": lambda each: time(each.create_time)}
        print_list("holds", client.datasets.holds(dataset), columns, as_json=as_json)


def collect_garbage(
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is found; otherwise it is only named.")] = False,
    min_age: Annotated[int, typer.Option(min=1, metavar="HOURS", help="Age from which a lost upload counts.")] = 24,
    as_json: JsonFlag = False,
) -> None:
    """Find what nobody needs: datasets that are kept no longer and not held, uploads that never became shards."""
    with connected() as client:
        operation = client.datasets.collect_garbage(delete=delete, min_age_s=3600 * min_age)
        found = wait(client, operation, "garbage", quiet=as_json)
    assert isinstance(found, retention_pb2.CollectGarbageResponse)
    if as_json:
        print_json(as_dict(found))
        return
    will = "deleted" if found.deleted else "would be deleted"
    for name in found.expired:
        stdout().print(f"{name}: {will}")
    for held in found.held:
        stdout().print(f"{held.name}: kept no longer, but held by {', '.join(held.holders)}", soft_wrap=True)
    for problem in found.problems:
        stdout().print(problem, soft_wrap=True)
    stdout().print(
        f"{len(found.expired)} datasets, {found.num_uploads} lost uploads of {size(found.upload_bytes)}, "
        f"{found.num_leftovers} leftovers: {will}" + ("" if found.deleted else "; --delete does it"),
        soft_wrap=True,
    )
