# input: a checkpoint's manifest (and a draft's), the next smaller batch of the same cell
# output: results/measure/<cell>/<key>/<block>.json
# steps: one block of one cell in a fresh process, alone on the device (or on a GPU of its own), whatever its outcome
#
# Cell and key say by content all that a result depends on. So a result that is there waits for no input (see
# `Workflow.inputs`), and `input` in the signature of the flags' function keeps Snakemake from comparing the flags with
# those of the last run.
# `update` keeps Snakemake from deleting what another run in this folder has sealed since this one began: the job then
# waits for its turn, finds the result and leaves it. A result that is not of this cell and key is set aside by the job.
# Priorities put every cell's block 0 before any block 1, in a seeded shuffle.


rule measure:
    input:
        unpack(lambda wildcards: FLOW.inputs(wildcards.cell, int(wildcards.block))),
    output:
        update("results/measure/{cell}/{key}/{block}.json"),
    log:
        "logs/measure/{cell}/{key}/{block}.log",
    priority: lambda wildcards: FLOW.priority[wildcards.cell, int(wildcards.block)]
    conda:
        "../../envs/core.yaml"
    threads: lambda wildcards: FLOW.cores_of(wildcards.cell)
    resources:
        bench_slot=lambda wildcards: FLOW.slots(wildcards.cell),
        slurm_extra="--exclusive",
        gpu=lambda wildcards: FLOW.gpus_of(wildcards.cell),
    params:
        flags=lambda wildcards, input: FLOW.flags(wildcards.cell, int(wildcards.block)),
    message:
        "Measuring block {wildcards.block} of cell {wildcards.cell}"
    shell:
        "python -m claimbench measure {params.flags} --output {output:q} 2>&1 | tee {log:q} >&2"
