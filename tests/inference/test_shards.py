"""Which of several processes does which images, and who says which of them one is."""

from itertools import chain

import pytest

from vitcli.errors import UsageError
from vitcli.inference.shards import Shard, parse_shard, shard_here, torchrun_shard

NAMES = [f"photos/{i}.jpg" for i in range(4000)] + ["caf\udce9.png", "\ud800", "", "a\nb"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_image_is_dealt_once_and_evenly(count: int) -> None:
    dealt = [[name for name in NAMES if Shard(index, count).has(name)] for index in range(count)]
    assert sorted(chain(*dealt)) == sorted(NAMES)
    assert min(map(len, dealt)) > 0.9 * len(NAMES) / count  # five standard deviations


def test_where_an_image_belongs_is_for_ever() -> None:
    """Parts that an earlier version made must go on to fit."""
    assert [next(i for i in range(4) if Shard(i, 4).has(name)) for name in ("a.jpg", "b/c.png", "ü.jpg", "5")] == [
        1,
        2,
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({"VIT_SHARD": "3/8"}, Shard(3, 8)),
        ({"RANK": "1", "WORLD_SIZE": "4"}, Shard(1, 4)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"}, Shard(2, 3)),
        (
            {f"SLURM_ARRAY_TASK_{key}": value for key, value in zip(("ID", "COUNT", "MIN", "MAX"), "5415", strict=True)}
            | {"SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "4"},
            Shard(2, 4),
        ),
        (
            {
                "SLURM_ARRAY_TASK_ID": "20", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_MAX": "20", "RANK": "1", "WORLD_SIZE": "2",
            },
            Shard(5, 6),
        ),
        # A batch script that did not go through srun is one process, whatever it could have started.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "VIT_SHARD": "1/2"}, Shard(1, 2)),
    ],
)  # fmt: skip
def test_the_environment_says_which_one_this_is(environment: dict[str, str], shard: Shard) -> None:
    assert shard_here(environment) == parse_shard("auto", environment) == shard


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "none of them is there"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "none of them is there"),
        ({"VIT_SHARD": "eight"}, "VIT_SHARD=eight: write i/n"),
        ({"WORLD_SIZE": "4"}, "RANK= is no number"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "RANK=x is no number"),
        (
            {f"SLURM_ARRAY_TASK_{k}": v for k, v in (("ID", "1"), ("COUNT", "3"), ("MIN", "1"), ("MAX", "7"))}
            | {"SLURM_ARRAY_TASK_ID": "2"},
            "not evenly spaced",
        ),
    ],
)
def test_an_environment_that_does_not_say_it(environment: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        shard_here(environment)


@pytest.mark.parametrize("text", ["4/4", "0/0", "1", "a/b", "-1/4", "1/4/2", "0/999999999", "1 /2", ""])
def test_no_shard(text: str) -> None:
    with pytest.raises(UsageError):
        parse_shard(text)


def test_one_process_of_torchrun_is_alone() -> None:
    assert torchrun_shard({"RANK": "0", "WORLD_SIZE": "1"}) is None
    assert torchrun_shard({"RANK": "1", "WORLD_SIZE": "2"}) == Shard(1, 2)
