# input: the fetched files of one checkpoint
# output: resources/checkpoints/<checkpoint>-<hash>/manifest.json, written last, beside its safetensors shards
# steps: dequantize where needed, write shards, check each against the manifest


rule shard:
    input:
        lambda wildcards: FLOW.fetched(wildcards.name),
    output:
        "resources/checkpoints/{name}/manifest.json",
    log:
        "logs/shard/{name}.log",
    conda:
        "../../envs/core.yaml"
    params:
        checkpoint=lambda wildcards: as_json(FLOW.checkpoints[wildcards.name]),
        fetched=lambda wildcards, input: str(Path(input[0]).parent),
        folder=lambda wildcards, output: str(Path(output[0]).parent),
        max_shard=FLOW.max_shard,
    message:
        "Writing {wildcards.name} as safetensors shards with a manifest"
    shell:
        "python -m claimbench shard --checkpoint {params.checkpoint:q} --fetched {params.fetched:q}"
        " --output {params.folder:q} {params.max_shard}"
        " 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"


rule checkpoints:
    input:
        [ancient(path) for path in FLOW.manifests],
    output:
        "results/checkpoints.json",
    log:
        "logs/checkpoints.log",
    conda:
        "../../envs/core.yaml"
    message:
        "Summing up which weights are here"
    shell:
        "python -m claimbench checkpoints --manifests {input:q} --output {output:q}"
        " 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"
