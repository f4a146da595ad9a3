# input: the first block of each batch of a sweep, and what they load
# output: results/frontier/<search>/<key>/frontier.json, and its trials beside it
# steps: halve the gap between what fitted and what did not, each trial in a fresh process, alone on the device


rule frontier:
    input:
        unpack(lambda wildcards: FLOW.frontier_inputs(wildcards.search)),
    output:
        update("results/measure/{search}/{key}/frontier.json"),
    log:
        "logs/frontier/{search}/{key}.log",
    wildcard_constraints:
        search=r"[0-9a-f]{12}",
    conda:
        "../../envs/core.yaml"
    threads: FLOW.cores
    resources:
        bench_slot=1,
        slurm_extra="--exclusive",
        gpu=FLOW.gpus,
    params:
        flags=lambda wildcards, input: FLOW.frontier_flags(wildcards.search),
    message:
        "Searching for the largest batch that fits, between those of sweep {wildcards.search}"
    shell:
        "python -m claimbench frontier {params.flags} --swept {input.swept:q} --output {output:q} 2>&1 | tee {log:q} >&2"
