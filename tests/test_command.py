"""MONAI's command line: mistakes end it with one line before anything is computed; what MONAI allows is allowed."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import monai.bundle
import monai.bundle.__main__ as command_line
import pytest
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from scripts.bundle import bundle_root
from scripts.checks import is_true
from scripts.command import check_command
from scripts.errors import message_of, say
from small_bundle import write_small_bundle
from synthetic import write_head
from tiny_run import datalist, summary, visible

CONFIG = str(Path(bundle_root()) / "configs" / "inference.json")


def check(*options: str, config: str = CONFIG, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # to be put back
    check_command([command_line.__file__, "run", "--config_file", config, *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--inputs", "x.nii"], "--inputs: there is no such option; did you mean --input?"),
        (["--treshold", "0.2"], "--treshold: there is no such option; did you mean --displayable_configs#threshold?"),
        (["--threshold", "0.2"], "did you mean --displayable_configs#threshold?"),
        (["--displayable_configs#treshold", "0.2"], "did you mean --displayable_configs#threshold?"),
        (["--displayable_configs::treshold=0.2"], "did you mean --displayable_configs#threshold?"),
        (["--trackin", "mlflow"], "did you mean --tracking?"),
        (["--overwite"], "did you mean --overwrite?"),
        (["--zzz", "1"], "--zzz: there is no such option; the options are the names in the config files."),
        (["--displayable_configs#noise_level", "abc"], "must be a number such as 500, got 'abc'."),
        (["--displayable_configs#guidance_scale", "nan"], "must be a number such as 6.0, got 'nan'."),
        (["--displayable_configs#guidance_scale", "1e999"], "must be a number such as 6.0, got '1e999'."),
        (["--displayable_configs#noise_level", "True"], "must be a number such as 500, got 'True'."),
        (["--student", "None"], "--student: MONAI takes None as if it were not given; write '$None'."),
        (["--output_dir"], "must be a text such as 'output', got True, as of an option without a value."),
        (["--displayable_configs", "0.2"], "--displayable_configs: must be a group of options such as"),
        (["--output_dir", "20241125"], "and 20241125 is read as a number; of a path, write ./20241125"),
        (["--output_dir", "2024_11_25"], "and 2024_11_25 is read as a number; of a path, write ./2024_11_25"),
        (["--overwrite", "yes"], "--overwrite: must be true or false, got 'yes'."),
        (["--sequences", "FLAIR"], "--sequences: must be a list such as ['FLAIR'], got 'FLAIR'."),
        (["--spatial_size#2", "3"], "--spatial_size#2: there is no such option"),
        (
            ["--input", "pat#2"],
            "MONAI reads # as ::, so no path can hold it, got 'pat#2'; give a link of another name.",
        ),
        (["--input", "1#"], "--input: '1#' is read as 1; of a path, write ./1#"),
        (["--input", "a,b#c"], "--input: 'a,b#c' is read as ('a', 'b')"),
        (["--output_dir", "run #1"], "got 'run #1'"),
        (["--output_dir", "./sub/res#2"], "got './sub/res#2'"),
        (["--input", "['a.nii','b#1.nii']"], "MONAI reads # as ::"),
        (
            ["--output_dir", "$RESULTS"],
            'takes $RESULTS for Python; the shell puts its variable in where it is "$RESULTS"',
        ),
        (["--input", "$HOME/data"], "MONAI takes $HOME/data for Python"),
        (["--output_dir", "(x)"], "--output_dir: '(x)' is read as 'x'; of a path, write ./(x)"),
        (["--output_dir", ""], "--output_dir: must be the path of a folder, got an empty text; the current one is ./"),
    ],
)
def test_mistakes_are_named(options: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError) as error:
        check(*options, monkeypatch=monkeypatch)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        ["--input", "x.nii", "--output_dir", "out", "--displayable_configs#threshold", "0.2"],
        [
            "--run_id",
            "inference",
            "--meta_file",
            "m.json",
            "--logging_file",
            "l.conf",
            "--init_id",
            "i",
            "--final_id",
            "f",
        ],
        ["--tracking", "mlflow", "--experiment_name", "e", "--save_execute_config", "False", "--run_name", "r"],
        ["--workflow_type", "infer", "--workflow_name", "ConfigWorkflow", "--properties_path", "p"],
        ["--student", "$None", "--network", "@network_def", "--preprocessing", "%other.json#preprocessing"],
        ["--network_def#norm_num_groups", "4", "--network_def#channels", "[8, 8]"],
        ["--preprocessing#transforms#0#min_size", "16"],
        ["--brain-cache", "cache", "--overwrite", "--allow_any_image", "true", "--spatial_size#0", "80"],
        ["--nooverwrite"],
        ["--output_dir", "'20241125'", "--network", "@train#network#network"],
        ["--handlers", "['@report', {'_target_': 'StatsHandler', 'tag_name': '@a#b'}]"],
        ["--device", "cpu", "--precision", "float32", "--brain_cache", "None"],
    ],
)
def test_what_monai_takes_is_allowed(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check(*options, monkeypatch=monkeypatch)


def test_options_of_all_config_files_and_of_an_arguments_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.json").write_text('{"my_own": 1}')
    both = f"['{CONFIG}','{tmp_path / 'mine.json'}']"
    check("--my_own", "2", config=both, monkeypatch=monkeypatch)
    with pytest.raises(ValueError, match="--my_own: there is no such option"):
        check("--my_own", "2", monkeypatch=monkeypatch)
    (tmp_path / "args.json").write_text('{"inputs": "x.nii"}')
    with pytest.raises(ValueError, match="--inputs: there is no such option; did you mean --input?"):
        check("--args_file", str(tmp_path / "args.json"), monkeypatch=monkeypatch)


@pytest.mark.parametrize(("configs", "name"), [(("train",), "run_dir"), (("evaluate",), "cache_dir")])
def test_no_folder_is_an_empty_text(configs: tuple[str, ...], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a variable that is not set. Also where the default is a component."""
    every = str([CONFIG, *(CONFIG.replace("inference", config) for config in configs)])
    with pytest.raises(ValueError, match=f"--{name}: must be the path of a folder, got an empty text"):
        check(f"--{name}=", config=every, monkeypatch=monkeypatch)
    check(f"--{name}", "./", config=every, monkeypatch=monkeypatch)


def test_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = sys.excepthook
    check_command(["/usr/bin/pytest", "run", "--inputs", "x"])
    assert sys.excepthook is hook


def test_truth_as_monai_hands_it_on() -> None:
    assert [is_true(v, "x") for v in (True, False, "true", "false", "False")] == [True, False, True, False, False]
    with pytest.raises(ValueError, match="x must be true or false, got 0"):
        is_true(0, "x")  # type: ignore[arg-type]


def test_a_missing_package_is_named() -> None:
    """As of ``--tracking mlflow`` without mlflow."""
    error = RuntimeError("Failed to instantiate component 'MLFlowHandler'.\n set '_mode_=debug'.")
    error.__cause__ = ImportError("Please install mlflow.\n\nFor details see MONAI.\n\nOriginal traceback:\n  File")
    assert message_of(error) == "Failed to instantiate component 'MLFlowHandler': Please install mlflow."


def test_faults_of_the_program_keep_their_traceback() -> None:
    def raised(error: Exception, wrapper: str | None = None) -> BaseException:
        try:
            try:
                raise error
            except Exception as cause:
                if wrapper is None:
                    raise
                raise RuntimeError(wrapper) from cause
        except Exception as whole:
            return whole

    assert message_of(raised(KeyError("x"), "Failed to evaluate 'x'")) is None
    assert message_of(raised(ValueError("x"), "Failed to evaluate 'x'")) is None  # not one of ours
    undefined = ValueError("the referring item `@volumes` is not defined in the config content.")
    assert "`@volumes` is not defined in the config content. Name the config files" in str(message_of(undefined))
    assert message_of(raised(OSError(28, "No space left on device"))) == "[Errno 28] No space left on device"
    wrapped = raised(
        TypeError("'>' not supported"), "Failed to instantiate component 'scripts.x' with keywords: a\nmore"
    )
    assert message_of(wrapped) == "Failed to instantiate component 'scripts.x' with keywords: a: '>' not supported"


def test_ctrl_c_is_one_line_and_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        say(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert ended.value.code == 130
    assert (
        capsys.readouterr().err
        == "Stopped. What was finished is kept; the same command, without --overwrite, goes on.\n"
    )


@pytest.mark.parametrize("line", [["monai.bundle", "nonsense"], ["scripts.manifest", "nonsense"]], ids=" ".join)
def test_a_command_line_that_cant_be_read_ends_with_2(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(line[0], run_name="__main__", alter_sys=True)
    assert ended.value.code == 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle in a folder whose name holds a space, as the whole path has to survive."""
    folder = tmp_path_factory.mktemp("with space") / "a folder"
    folder.mkdir()
    return write_small_bundle(folder)


def start(bundle: Path, *options: str, overlays: tuple[str, ...] = (), **settings: Any) -> subprocess.Popen[str]:
    files = [str(bundle / "configs" / f"{name}.json") for name in ("inference", *overlays)]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", repr(files)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a shell's background job ignores Ctrl-C, and so would what is started here
    listening = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen([*command, *options], cwd=bundle.parent, **pipes, **settings)
    finally:
        signal.signal(signal.SIGINT, listening)


def test_a_mistake_ends_the_command_with_one_line(bundle: Path, tmp_path: Path) -> None:
    image = write_head(tmp_path)["image"]
    process = start(bundle, "--inputs", image, "--output_dir", str(tmp_path / "out"))
    _, errors = process.communicate(timeout=170)
    assert process.returncode == 1 and "Traceback" not in errors, errors
    # before it, only what MONAI says of itself
    assert errors.splitlines()[-1] == "ERROR: --inputs: there is no such option; did you mean --input?"
    assert not (tmp_path / "out").exists() and not (bundle.parent / "output").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--input PATH is needed: an image, a folder of them or a JSON datalist."),
        ({"input": "FOLDER/none.nii"}, "FOLDER/none.nii: no such file or folder."),
        ({"input": "FOLDER/bad.json"}, "FOLDER/bad.json: can't be read as a JSON datalist"),
        ({"output_dir": "FOLDER/file"}, "FOLDER/file: is a file; give another --output_dir."),
        ({"output_dir": "FOLDER/file/below"}, "[Errno 20] Not a directory: 'FOLDER/file/below'"),
        ({"output_dir": "/proc/nothing"}, "No such file or directory: '/proc/nothing'"),
        ({"displayable_configs#noise_level": 1000}, "noise_level must be above 0 and below 1000, got 1000"),
        ({"network_def#channels": "eight"}, "DiffusionModelUNet' with keywords: "),
        ({"device": "gpu"}, "(cpu), got 'gpu'."),
        ({"device": "cuda"}, "device must be one of those that PyTorch finds on this machine (cpu), got 'cuda'."),
        ({"device": "cuda:7"}, "(cpu), got 'cuda:7'."),
        ({"device": "cuda", "precision": "float32"}, "(cpu), got 'cuda'."),
        ({"network#path": "FOLDER/file"}, "FOLDER/file: is not a PyTorch state dict (EOFError)."),
        ({"network#path": "FOLDER/none.pt"}, "FOLDER/none.pt: no weights there"),
    ],
)
def test_setup_errors_are_one_line_and_leave_nothing(
    options: dict[str, Any], message: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MONAI's command runs a config, but in this process."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    image = write_head(tmp_path)["image"]
    (tmp_path / "file").touch()
    (tmp_path / "bad.json").write_text("{")
    given = {"bundle_root": str(bundle), "output_dir": str(tmp_path / "out"), **({"input": image} if options else {})}
    given |= {k: v.replace("FOLDER", str(tmp_path)) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(Exception) as error:
        monai.bundle.run(config_file=str(bundle / "configs" / "inference.json"), logging_file=False, **given)
    said = message_of(error.value)
    assert said is not None and message.replace("FOLDER", str(tmp_path)) in said, said
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_whole_results_and_a_summary(bundle: Path, tmp_path: Path) -> None:
    items = [write_head(tmp_path, name=f"v{n:02}") for n in range(20)]
    out = tmp_path / "my results"
    process = start(bundle, "--input", datalist(tmp_path, items), "--output_dir", str(out))
    deadline = time.monotonic() + 170
    while not (out / "v01" / "result.json").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=170)
    assert process.returncode == 130, errors[-2000:]
    assert "Stopped; the same command, without --overwrite, goes on with the other volumes." in said
    assert "Traceback" not in errors
    volumes = summary(out)
    assert 2 <= len(volumes) < 20 and {v["status"] for v in volumes.values()} == {"ok"}
    assert visible(out) == sorted([*volumes, "summary.csv", "summary.json"])
    files = ["anomaly_map.nii.gz", "counterfactual.nii.gz", "overview.png", "pred.nii.gz", "result.json"]
    assert all(visible(out / name) == files for name in volumes)


@pytest.mark.parametrize(
    ("overlays", "kept", "number", "status"),
    [
        (("train",), "index.jsonl", signal.SIGINT, 130),
        (("evaluate", "calibrate"), "evaluated-*.pt", signal.SIGINT, 130),
        (("evaluate", "calibrate"), "evaluated-*.pt", signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_ctrl_c_while_volumes_are_made_ends_with_one_line(
    overlays: tuple[str, ...], kept: str, number: signal.Signals, status: int, bundle: Path, tmp_path: Path
) -> None:
    """SIGTERM ends it as the system does, which a shell calls 143."""
    items = [{**write_head(tmp_path, name=f"v{n:02}"), "label": n % 2} for n in range(20)]
    named = [{("subject" if key == "name" else key): value for key, value in item.items()} for item in items]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": named[:10], "validation": named[10:]}))
    cache = tmp_path / "cache"
    options = ("--datalist", str(tmp_path / "datalist.json"), "--cache_dir", str(cache))
    process = start(bundle, *options, "--output_dir", str(tmp_path / "out"), overlays=overlays)
    deadline = time.monotonic() + 170
    while not any(cache.rglob(kept)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=170)
    assert process.returncode == status and "Traceback" not in errors, errors[-2000:]
    stopped = "Stopped. What was finished is kept; the same command, without --overwrite, goes on."
    assert (errors.splitlines()[-1] == stopped) == (number == signal.SIGINT)
    assert any(cache.rglob(kept)) and not (tmp_path / "out").exists()


def test_nothing_is_written_into_the_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts and weights may belong to another user; and MONAI's tracking has handlers of its own."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    held = sorted(str(p) for p in bundle.rglob("*") if "__pycache__" not in p.parts)
    options = {"bundle_root": str(bundle), "input": write_head(tmp_path)["image"], "output_dir": str(tmp_path / "out")}
    tracking = {**DEFAULT_MLFLOW_SETTINGS, "configs": {"evaluator": {"_target_": "StatsHandler", "name": "tracked"}}}
    config = str(bundle / "configs" / "inference.json")
    monai.bundle.run(config_file=config, logging_file=False, tracking=tracking, **options)
    assert sorted(str(p) for p in bundle.rglob("*") if "__pycache__" not in p.parts) == held
    assert summary(tmp_path / "out")["flair"]["status"] == "ok"
