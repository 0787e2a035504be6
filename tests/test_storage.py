"""Run folders: units, the manifest, verification."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reta.errors import DataError, UsageError
from reta.storage import RunFolder, fingerprint


def make_run(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    for name in ("a", "b"):
        unit = run.unit(name, {"seed": 1})
        unit.write(f"data/{name}.bin", name.encode() * 100)
        unit.finish({"seconds": 1.5})
    run.seal({"classes": ["x"]})
    return run


def test_a_unit_is_done_only_for_its_own_inputs(tmp_path):
    """Breaks when a changed setting would silently keep old results."""
    run = make_run(tmp_path)
    assert run.unit("a", {"seed": 1}).done
    assert run.unit("a", {"seed": 1}).facts == {"seconds": 1.5}
    assert not run.unit("a", {"seed": 2}).done
    assert not run.unit("c", {"seed": 1}).done


def test_a_unit_with_a_damaged_file_is_done_again(tmp_path):
    """Breaks when a torn or deleted file counts as finished work."""
    run = make_run(tmp_path)
    (tmp_path / "data/a.bin").write_bytes(b"torn")
    (tmp_path / "data/b.bin").unlink()
    assert not run.unit("a", {"seed": 1}).done
    assert not run.unit("b", {"seed": 1}).done


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path_factory, data):
    """Breaks when one bit of one file can change without `verify` noticing."""
    folder = tmp_path_factory.mktemp("run")
    run = make_run(folder)
    assert run.verify() == []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(content))
    assert run.verify() != []


def test_verify_finds_missing_and_foreign_files(tmp_path):
    """Breaks when a set can lose or gain an image unnoticed."""
    run = make_run(tmp_path)
    (tmp_path / "data/a.bin").unlink()
    (tmp_path / "data/extra.bin").write_bytes(b"?")
    assert {problem.split(":")[0] for problem in run.verify()} == {"data/a.bin", "data/extra.bin"}


def test_sealing_again_does_not_bless_damage(tmp_path):
    """Breaks when a later command re-hashes a file that was damaged in between."""
    run = make_run(tmp_path)
    (tmp_path / "data/a.bin").write_bytes(b"damaged")
    run.seal({"classes": ["x"]})
    assert run.verify() == ["data/a.bin: changed after it was written"]


def test_a_newer_format_and_a_foreign_file_are_refused(tmp_path):
    """Breaks when an unknown manifest is read as if it were ours."""
    run = make_run(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(DataError, match="newer reta"):
        run.manifest()
    for text in ("[]", "{", "{}"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"manifest\.json"):
            run.manifest()


def test_a_damaged_record_is_work_to_do_again(tmp_path):
    """Breaks when a torn unit record stops a run instead of costing it one unit."""
    run = make_run(tmp_path)
    for text in ("{", "[]", '{"inputs": 1}'):
        (tmp_path / "units/a.json").write_text(text)
        assert not run.unit("a", {"seed": 1}).done


def test_a_manifest_cannot_lead_outside(tmp_path):
    """Breaks when a sealed but hostile manifest makes reta read files of the system."""
    for name in ("../secret", "/etc/passwd", "a/../../b", "..\\secret"):
        run = make_run(tmp_path / fingerprint(name)[:8])
        manifest = run.manifest() | {"files": {name: "0" * 64}}
        manifest.pop("seal")
        manifest["seal"] = fingerprint(manifest)
        (run.path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DataError, match="outside the folder"):
            run.manifest()


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    """Breaks when --out on somebody's photos plants files there, or deletes a temporary one."""
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/.mine.tmp").write_text("precious")
    with pytest.raises(UsageError, match="holds other files"), RunFolder(tmp_path).locked():
        pass
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["cats", ".mine.tmp"]


def test_a_run_inside_a_run_is_its_own(tmp_path):
    """Breaks when a comparison cleans or verifies the files of the runs it holds."""
    outer, inner = make_run(tmp_path), make_run(tmp_path / "inner")
    (inner.path / "data/.half.tmp").write_bytes(b"?")
    assert outer.verify() == []
    assert inner.verify() != []
    with outer.locked():
        assert (inner.path / "data/.half.tmp").exists()
