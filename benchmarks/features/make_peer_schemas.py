"""
What others' own classes take of an exported feature, as a JSON schema that tests hold weft's files to.

    python benchmarks/features/make_peer_schemas.py --circuit-tracer CHECKOUT --sae-dashboard CHECKOUT

The checkouts are of decoderesearch/circuit-tracer and jbloomAus/SAEDashboard. The first one's pydantic model of a
feature's file is asked for its schema, the second one's classes of batches for what their constructors take and what
they write themselves. The output is `tests/assets/feature_exports.schema.json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import TypeAdapter

TARGET = Path(__file__).parents[2] / "tests" / "assets" / "feature_exports.schema.json"
Json = dict[str, Any]


def loaded(path: Path) -> ModuleType:
    """Load one file of a checkout, without its package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look for their module there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def commit_of(checkout: Path) -> str:
    """The commit that is checked out."""
    found = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def constructor_schema(kind: type, children: Json) -> Json:
    """What a constructor takes and its class writes; `children` are the schemas of its lists of other classes."""
    hints = get_type_hints(kind.__init__)
    properties = {
        name: {"type": "array", "items": children[name]} if name in children else TypeAdapter(hints[name]).json_schema()
        for name in inspect.signature(kind).parameters
    }
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(kind().to_dict()),
        "additionalProperties": False,
    }


def main() -> None:
    """Write the schemas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--circuit-tracer", type=Path, required=True)
    parser.add_argument("--sae-dashboard", type=Path, required=True)
    options = parser.parse_args()
    models = loaded(options.circuit_tracer / "circuit_tracer" / "frontend" / "feature_models.py")
    classes = loaded(options.sae_dashboard / "sae_dashboard" / "neuronpedia" / "neuronpedia_dashboard.py")
    activation = constructor_schema(classes.NeuronpediaDashboardActivation, {})
    feature = constructor_schema(classes.NeuronpediaDashboardFeature, {"activations": activation})
    document = {
        "made_by": "benchmarks/features/make_peer_schemas.py",
        "circuit_tracer": {"commit": commit_of(options.circuit_tracer), "schema": models.Model.model_json_schema()},
        "sae_dashboard": {
            "commit": commit_of(options.sae_dashboard),
            "schema": constructor_schema(classes.NeuronpediaDashboardBatch, {"features": feature}),
        },
    }
    TARGET.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
