"""The SBOM names what is installed, and what each package requires."""

import importlib.metadata
import json

from packaging.utils import canonicalize_name

from audiox_trainer.launch import sbom


def test_it_names_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sbom.py", "--out", str(tmp_path / "sbom.json")])
    assert sbom.main() == 0
    written = json.loads((tmp_path / "sbom.json").read_text())
    assert written["bomFormat"] == "CycloneDX" and written["metadata"]["component"]["name"] == "audiox-trainer"
    packages = {each["name"]: each for each in written["components"]}
    assert f"{len(packages)} packages" in capsys.readouterr().out
    installed = {canonicalize_name(each.metadata["Name"]) for each in importlib.metadata.distributions()}
    assert packages.keys() == installed - {"audiox-trainer"}
    for name in ("torch", "deepspeed", "safetensors", "av"):
        version = importlib.metadata.version(name)
        assert packages[name]["version"] == version and packages[name]["purl"].startswith(f"pkg:pypi/{name}@")
    assert all(each.get("licenses") for name, each in packages.items() if name in ("safetensors", "numpy"))
    required = {each["ref"].split("==")[0]: each.get("dependsOn", []) for each in written["dependencies"]}
    assert any(ref.startswith("torch==") for ref in required["audiox-trainer"])
    assert any(ref.startswith("yarl==") for ref in required["aiohttp"])
