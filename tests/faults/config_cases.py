"""Configs, command lines and environments that are wrong, in ways that no schema lists."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from tests.faults.place import Case, Place

Act = Callable[[Place], str]
LAUNCHED = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
}


def fields(*overrides: str) -> Act:
    return lambda place: place.main(*(text.replace("HERE", str(place.folder)) for text in overrides))


def launched(**changes: str) -> Act:
    return lambda place: place.main(environment=LAUNCHED | {"MASTER_PORT": "29517"} | changes)


def port_in_use(place: Place) -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        return place.main(environment=LAUNCHED | {"MASTER_PORT": str(listener.getsockname()[1])})


def text(content: str) -> Act:
    """A config of this text."""
    return lambda place: place.main(config=place.write("c.yaml", content))


def config_is(make: Callable[[Path], object]) -> Act:
    def act(place: Place) -> str:
        path = place.folder / "c.yaml"
        make(path)
        return place.main(config=path)

    return act


def in_run(make: Callable[[Path], object], train: bool = False) -> Act:
    """Something lies in the run's folder before it begins."""

    def act(place: Place) -> str:
        run = place.folder / "runs" / "run"
        run.mkdir(parents=True)
        make(run)
        return place.main(train=train)

    return act


def in_finished_run(change: Callable[[Path], object]) -> Act:
    def act(place: Place) -> str:
        change(place.run())
        return place.main(log="shapes")

    return act


def home(place: Place) -> str:
    place.data()
    environment = {"HOME": str(place.folder)}
    answer = place.main(
        "data.name=folder",
        "task=[[pear], [kiwi]]",
        "data.root=~/data",
        "output_dir=~/runs",
        environment=environment,
    )
    roots = [line.strip() for line in place.printed.splitlines() if line.startswith(("output_dir", "  root"))]
    return place.shorten(f"{answer[:6]}: {', '.join(roots)}")


def remark(*overrides: str) -> Act:
    def act(place: Place) -> str:
        answer = place.main(*overrides)
        told = [line for line in place.printed.splitlines() if line.startswith("task: ")]
        return f"{answer[:6]}: {told[-1]}"

    return act


def log_name(name: str) -> Act:
    return lambda place: place.main(log=name)


def log_of_config(value: str) -> Act:
    return lambda place: (
        place.main(config=place.config({"log": False}), without=("log",)) if value == "no" else ""
    )


def file_at(name: str) -> Callable[[Place], object]:
    return lambda place: place.write(name, "a file")


def after(prepare: Callable[[Place], object], *overrides: str) -> Act:
    def act(place: Place) -> str:
        prepare(place)
        return fields(*overrides)(place)

    return act


def link(name: str, target: str) -> Callable[[Place], object]:
    return lambda place: (place.folder / name).symlink_to(target)


def weak_message(act: Act, *unwanted: str, longest: int = 400) -> Act:
    """An answer that must not hold some words, nor be long."""

    def judged(place: Place) -> str:
        answer = act(place)
        found = [word for word in unwanted if word in answer]
        return f"{answer} [says {found}]" if found else answer

    return judged


BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
LONG, DIGITS = "n" * 300, "1" * 400
TEXT_EXPECTED = "put a text in quotes"

CASES = [
    Case("YAML", "nested 2 000 deep", text("[" * 2000), "nested more than 32 deep"),
    Case(
        "YAML",
        "mappings nested 40 deep",
        text("".join(f"{' ' * i}a:\n" for i in range(40)) + f"{' ' * 40}1"),
        "nested more than 32 deep",
    ),
    Case(
        "YAML",
        "nine lines of aliases, 9⁹ items",
        text(f"{BOMB}task: *i\n"),
        "once its aliases are written out",
    ),
    Case("YAML", "an alias in what it names", text("a: &a [*a]\n"), "an alias stands in what it names"),
    Case(
        "YAML",
        "merge keys that double",
        text(
            "a: &a {x: 1}\n"
            + "".join(
                f"k{i}: &k{i} {{<<: [*{p}, *{p}]}}\n"
                for i, p in enumerate(["a", *(f"k{j}" for j in range(29))])
            )
        ),
        "once its aliases are written out",
    ),
    Case("YAML", "10 MB", text("# " + "x" * 10_000_000), "larger than 262 kB"),
    Case("YAML", "a number of 5000 digits", text(f"seed: {'1' * 5000}\n"), "put it in quotes"),
    Case("YAML", "a date that is none", text("log: 2001-99-99\n"), "put it in quotes"),
    Case(
        "YAML",
        "a tag of Python",
        text("a: !!python/object/apply:os.system [ls]\n"),
        "could not determine a constructor",
    ),
    Case("YAML", "control characters", text("a: \x01\n"), "not valid YAML"),
    Case(
        "YAML",
        "Latin-1",
        lambda p: p.main(config=p.write("c.yaml", "log: käfer\n".encode("latin-1"))),
        "not valid YAML",
    ),
    Case("YAML", "an empty file", text(""), "holds nothing, expected a mapping"),
    Case("YAML", "two documents", text("a: 1\n---\nb: 2\n"), "found another document"),
    Case("YAML", "--set nested 2 000 deep", fields("task=" + "[" * 2000), "nested more than 32 deep"),
    Case("YAML", "--set of 5000 sections", fields("a." * 5000 + "b=1"), "names more than 32 sections"),
    Case("config", "a FIFO", config_is(os.mkfifo), "is a named pipe"),
    Case("config", "/dev/zero", lambda p: p.main(config=Path("/dev/zero")), "is a device"),
    Case("config", "a folder", config_is(Path.mkdir), "is a folder"),
    Case(
        "config",
        "a circle of links",
        config_is(lambda path: path.symlink_to(path.name)),
        "links lead in a circle",
    ),
    Case(
        "config", "a name of 300 characters", lambda p: p.main(config=p.folder / LONG), "the name is too long"
    ),
    Case("launcher", "LOCAL_RANK=abc", launched(LOCAL_RANK="abc"), "LOCAL_RANK: found 'abc'"),
    Case("launcher", "RANK=first", launched(RANK="first"), "RANK: found 'first'"),
    Case("launcher", "RANK=-1", launched(RANK="-1"), "RANK: found '-1'"),
    Case("launcher", "WORLD_SIZE=0", launched(WORLD_SIZE="0"), "WORLD_SIZE: found '0'"),
    Case("launcher", "WORLD_SIZE=", launched(WORLD_SIZE=""), "WORLD_SIZE: found ''"),
    Case("launcher", "RANK=3 of WORLD_SIZE=1", launched(RANK="3"), "ranks count from 0"),
    Case("launcher", "a port in use", port_in_use, "another program uses this port"),
    Case(
        "launcher",
        "MASTER_PORT=http",
        launched(MASTER_PORT="http"),
        "the ranks cannot meet at 127.0.0.1:http",
    ),
    Case("launcher", "MASTER_PORT=99999", launched(MASTER_PORT="99999"), "the ranks cannot meet at"),
    Case(
        "environment",
        "TQDM_MININTERVAL=abc",
        lambda p: p.main(environment={"TQDM_MININTERVAL": "abc"}),
        "TQDM_MININTERVAL: found 'abc'",
    ),
    Case(
        "environment",
        "TQDM_MININTERVAL=nan",
        lambda p: p.main(environment={"TQDM_MININTERVAL": "nan"}),
        "TQDM_MININTERVAL: found 'nan'",
    ),
    Case("paths", "NUL in --log", log_name("a\0b"), "without control characters"),
    Case("paths", "NUL in output_dir", fields('output_dir="a\\0b"'), "without control characters"),
    Case(
        "paths",
        "NUL in data.root",
        fields("data.name=folder", 'data.root="a\\0b"'),
        "without control characters",
    ),
    Case(
        "paths",
        "NUL in data.train_ids",
        fields("data.name=folder", 'data.train_ids="a\\0b"'),
        "without control",
    ),
    Case(
        "paths",
        "an escape sequence in output_dir",
        fields('output_dir="a\\e[31mb"'),
        "without control characters",
    ),
    Case("paths", "300 characters in --log", log_name(LONG), "255 bytes"),
    Case("paths", "300 characters in output_dir", fields(f"output_dir=HERE/{LONG}"), "255 bytes"),
    Case(
        "paths", "300 characters in data.root", fields("data.name=folder", f"data.root={LONG}"), "255 bytes"
    ),
    Case("paths", "300 characters in init_from", fields(f"init_from={LONG}"), "255 bytes"),
    Case(
        "paths",
        "a slash in --log",
        weak_message(log_name("a/b"), "pattern", "^("),
        "expected one folder name",
    ),
    Case(
        "paths",
        "--log .hidden",
        weak_message(log_name(".hidden"), "pattern", "^("),
        "expected one folder name",
    ),
    Case("paths", "`log: no` in the config", log_of_config("no"), TEXT_EXPECTED),
    Case("paths", "output_dir a file", after(file_at("f"), "output_dir=HERE/f"), "is no folder, but"),
    Case(
        "paths", "output_dir below a file", after(file_at("f"), "output_dir=HERE/f/g/h"), "is no folder, but"
    ),
    Case(
        "paths",
        "output_dir a circle of links",
        after(link("l", "l"), "output_dir=HERE/l"),
        "links lead in a circle",
    ),
    Case(
        "paths",
        "output_dir a link to nothing",
        after(link("l", "x"), "output_dir=HERE/l"),
        "is a link to nothing",
    ),
    Case(
        "paths",
        "data.root a file",
        after(file_at("f"), "data.name=folder", "data.root=HERE/f"),
        "no such file",
    ),
    Case(
        "paths",
        "data.root a circle of links",
        after(link("l", "l"), "data.name=folder", "data.root=HERE/l"),
        "links lead in a circle",
    ),
    Case(
        "paths",
        "data.train_ids a folder",
        lambda p: (p.data(), p.on_folder(f"data.train_ids={p.folder}"))[1],
        "is a folder; give a text file",
    ),
    Case(
        "paths",
        "data.train_ids a FIFO",
        lambda p: (p.data(), p.on_folder(f"data.train_ids={p.fifo('f')}"))[1],
        "named pipe",
    ),
    Case(
        "paths",
        "data.val_ids a circle of links",
        lambda p: (p.data(), link("l", "l")(p), p.on_folder(f"data.val_ids={p.folder / 'l'}"))[2],
        "in a circle",
    ),
    Case("paths", "init_from a folder", fields("init_from=HERE"), "is no regular file"),
    Case(
        "paths",
        "init_from a FIFO",
        after(lambda p: os.mkfifo(p.folder / "f"), "init_from=HERE/f"),
        "no regular file",
    ),
    Case("paths", "model.pretrained a folder", fields("model.pretrained=HERE"), "no file"),
    Case("paths", "`~` in data.root and output_dir", home, "exit 0: output_dir: …/runs, root: …/data"),
    Case(
        "run folder",
        "log.txt a folder",
        in_run(lambda run: (run / "log.txt").mkdir()),
        "log.txt: is a folder",
    ),
    Case(
        "run folder",
        "results.json a folder",
        in_run(lambda run: (run / "results.json").mkdir()),
        "is a folder",
    ),
    Case(
        "run folder",
        "checkpoints/ a file",
        in_run(lambda run: (run / "checkpoints").touch()),
        "is no folder, but",
    ),
    Case(
        "run folder",
        "panels/ a circle of links",
        in_run(lambda run: (run / "panels").symlink_to("panels")),
        "in a circle",
    ),
    Case(
        "run folder",
        "config.yaml a FIFO",
        in_run(lambda run: os.mkfifo(run / "config.yaml")),
        "is a named pipe",
    ),
    Case(
        "run folder",
        "results.json a list",
        in_finished_run(lambda run: (run / "results.json").write_text("[]")),
        "delete it, and the steps that have checkpoints are evaluated again",
    ),
    Case(
        "run folder",
        "results.json nested deep",
        in_finished_run(lambda run: (run / "results.json").write_text("[" * 100_000)),
        "nested more than 32 deep",
    ),
    Case(
        "run folder",
        "task.json of something else",
        in_finished_run(lambda run: (run / "task.json").write_text('{"steps": 3}')),
        "not the task of a run",
    ),
    Case(
        "run folder",
        "image_ids of other images",
        in_finished_run(
            lambda run: (
                (run / "image_ids" / "train.txt").write_text("a\n"),
                (run / "checkpoints" / "step_1.pth").rename(run / "kept.pth"),
            )
        ),
        "the train images are not those",
    ),
    Case("numbers", "a seed of 400 digits", fields(f"seed={DIGITS}"), "seed: "),
    Case("numbers", "a seed of 5000 digits", fields(f"seed={DIGITS * 13}"), "put it in quotes"),
    Case("numbers", "10^30 epochs", fields("train.num_epochs=1" + "0" * 30), "train.num_epochs: "),
    Case("numbers", "10^9 drawn images", fields("data.num_train=1000000000"), "less than or equal to 100000"),
    Case(
        "numbers",
        "images of 10^6 pixels a side",
        fields("data.image_size=1000000"),
        "less than or equal to 4096",
    ),
    Case("numbers", "10^9 channels", fields("model.channels=1000000000"), "less than or equal to 16384"),
    Case("numbers", "a crop of 10^9", fields("train.crop_size=1000000000"), "less than or equal to 16384"),
    Case("numbers", "10^9 data workers", fields("data.num_workers=1000000000"), "less than or equal to 1024"),
    Case(
        "numbers",
        "a batch of 10^12",
        fields("train.batch_size=1000000000000"),
        "less than or equal to 1000000",
    ),
    Case("numbers", "save_every 0m", fields("save_every=0m"), "above 0"),
    Case("numbers", "save_every 0.000m", fields("save_every=0.000m"), "above 0"),
    Case("numbers", "save_every of 400 digits of minutes", fields(f"save_every={DIGITS}m"), "above 0"),
    Case(
        "numbers", "a learning rate of 1e300", fields("train.lr_base=1e300"), "expected a number of at most"
    ),
    Case("numbers", "a weight of 1e400", fields("method.output_weight=1e400"), "method.output_weight: "),
    Case("numbers", "a timeout of 1e18", fields("distributed.timeout=1e18"), "expected a number of at most"),
    Case(
        "numbers",
        "scales of 1e9",
        fields("evaluate.mode=whole", "evaluate.scales=[1e9]"),
        "evaluate.scales.0: ",
    ),
    Case(
        "tasks", "4-4 of 6 classes", remark("task=4-4"), "leaves a shorter last step: 2 classes instead of 4"
    ),
    Case("tasks", "a name of 10 000 digits", fields("task=" + "'" + "9" * 10_000 + "-1'"), "task: "),
    Case("tasks", "YAML's bare `off` as a class", fields("task=[[disc, off]]"), TEXT_EXPECTED),
    Case("tasks", "an empty list", fields("task=[]"), "the list of steps is empty"),
    Case(
        "tasks",
        "a class order of 9999 ids",
        fields("task=5-1", f"class_order={list(range(9999))}"),
        "class_order: ",
    ),
    Case("words", "a mapping for the whole data", fields("data={a: {b: {c: 1}}}"), "data.name: missing"),
    Case(
        "words", "a wrong value of 10 000 characters", fields("setting=" + "x" * 10_000), "(10002 characters)"
    ),
    Case("words", "an escape sequence in a key", fields("tr\x1b[31main=1"), "\\x1b"),
]
