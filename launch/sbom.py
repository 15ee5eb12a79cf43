"""Write an SBOM (CycloneDX 1.6, JSON): every package of this environment with its version, licence and requirements.

examples:
  python launch/sbom.py --out sbom.json
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.contrib.this.builders import this_component
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from audiox_trainer.trainer.core import cli
from audiox_trainer.trainer.core.files import write_text

PROJECT = "audiox-trainer"


def component(found: importlib.metadata.Distribution) -> Component:
    """A package as CycloneDX names it."""
    metadata = found.metadata
    name = str(canonicalize_name(metadata["Name"]))
    said = [text for key in ("License-Expression", "License") for text in metadata.get_all(key) or []]
    said += [text.split(" :: ")[-1] for text in metadata.get_all("Classifier") or [] if text.startswith("License ::")]
    short = next((text for text in said if 0 < len(text) < 100 and "\n" not in text), "")  # some have its whole text
    licences = [LicenseFactory().make_from_string(short)] if short else []
    kind = ComponentType.APPLICATION if name == PROJECT else ComponentType.LIBRARY
    url = PackageURL("pypi", name=name, version=found.version)
    return Component(
        name=name, version=found.version, type=kind, purl=url, bom_ref=f"{name}=={found.version}", licenses=licences
    )


def environment() -> Bom:
    """All packages of this environment, and which of them each one requires here. Extras are not known of a package
    that is installed, so what it requires for one stands there without being its requirement."""
    installed = {str(canonicalize_name(each.metadata["Name"])): each for each in importlib.metadata.distributions()}
    components = {name: component(each) for name, each in installed.items()}
    bom = Bom()
    for name, each in installed.items():
        required = map(Requirement, each.requires or [])
        names = {
            str(canonicalize_name(r.name)) for r in required if r.marker is None or r.marker.evaluate({"extra": ""})
        }
        bom.register_dependency(components[name], [components[other] for other in sorted(names & installed.keys())])
        if name != PROJECT:
            bom.components.add(components[name])
    bom.metadata.component = components[PROJECT]
    bom.metadata.tools.components.add(this_component())
    return bom


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("sbom.json"), help="file to write (default: %(default)s)")
    return parser.parse_args(argv)


def main() -> int:
    arguments = parse()

    def run() -> None:
        bom = environment()
        text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
        write_text(arguments.out, text)
        print(f"{arguments.out}: {len(bom.components)} packages")

    return cli.run(run)


if __name__ == "__main__":
    sys.exit(main())
