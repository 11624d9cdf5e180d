"""The data card in Croissant 1.0, the JSON-LD by which catalogues describe data sets.

Format: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from typing import Any

from pipeline import storage
from pipeline.curate.view.gather import NOT_STATED, DatasetView
from pipeline.dataset.metadata import ShardRecord

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_FIELDS = {
    "key": ("sc:Text", "Name of the sample, unique in the data set."),
    "uri": ("sc:Text", "Where the picture came from."),
    "source": ("sc:Text", "Source that it was read from."),
    "label": ("sc:Text", "The target, or empty for none of the targets."),
    "label_state": ("sc:Text", "verified_present, verified_absent or unknown."),
    "stratum": ("sc:Text", "near, mid, far or generated, where the source states it."),
    "split": ("sc:Text", "train, val or test."),
    "license": ("sc:Text", "Licence, where the source states it."),
    "author": ("sc:Text", "Author, where the source states it."),
    "similarity": ("sc:Float", "Cosine similarity to the positives."),
    "inclusion_probability": ("sc:Float", "Probability with which it was chosen."),
}


def data_card(view: DatasetView) -> dict[str, Any]:
    """The JSON-LD. Paths of files are relative to the data set."""
    targets = " or ".join(view.info.targets)
    name = storage.redact(view.root).rstrip("/").rpartition("/")[2] or "dataset"
    stated = {each for source in view.sources.values() for each in source.licenses} - {NOT_STATED}
    shards = view.generation.shards
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": f"Pictures of {targets}, and of other things to tell them from: "
        f"{sum(shard.num_samples for shard in shards):,} samples in WebDataset shards, each with "
        "the probability with which it was chosen.",
        "version": f"{view.generation.number}.0.0",
        **({"license": sorted(stated)} if stated else {}),
        "distribution": [part for shard in shards for part in _files(shard)],
        "recordSet": [_records(shard) for shard in shards],
    }


def _files(shard: ShardRecord) -> list[dict[str, Any]]:
    types = {
        shard.path: ("application/x-tar", shard.sha256),
        shard.sidecar_path: ("application/x-parquet", shard.sidecar_sha256),
    }
    return [
        {
            "@type": "cr:FileObject",
            "@id": path,
            "name": path,
            "contentUrl": path,
            "encodingFormat": encoding,
            "sha256": sha256,
        }
        for path, (encoding, sha256) in types.items()
    ]


def _records(shard: ShardRecord) -> dict[str, Any]:
    stem = shard.path.removesuffix(".tar")
    return {
        "@type": "cr:RecordSet",
        "@id": stem,
        "name": stem,
        "description": f"{shard.num_samples:,} samples of {shard.source}, {shard.split}, "
        f"{shard.label or 'none of the targets'}.",
        "key": {"@id": f"{stem}/key"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{stem}/{name}",
                "name": name,
                "description": description,
                "dataType": kind,
                "source": {
                    "fileObject": {"@id": shard.sidecar_path},
                    "extract": {"column": name},
                },
            }
            for name, (kind, description) in _FIELDS.items()
        ],
    }
