"""Everything that can be made again lies in one folder, which a user may put elsewhere."""

from __future__ import annotations

from claimbench.system.cache import cache_folder


def test_it_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAIMBENCH_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder("gguf") == tmp_path / "elsewhere" / "gguf"


def test_it_is_here_by_default_and_absolute_for_processes_that_run_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("CLAIMBENCH_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cache_folder("native") == tmp_path.resolve() / ".claimbench" / "native"
    assert not (tmp_path / ".claimbench").exists()
