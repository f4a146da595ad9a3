# input: envs/<family>.lock, those of torch, and envs/<family>.build.py where something has to be compiled
# output: a stamp with the lock's hash and what was installed
# steps: one virtual environment per backend family that cannot share Claimbench's own; compiled here, not while timed


rule environment:
    input:
        lock=lambda wildcards: FLOW.lock(wildcards.family),
        torch=FLOW.torch_locks,
        program=lambda wildcards: FLOW.build_program(wildcards.family),
    output:
        "resources/environments/{family}/stamp.json",
    log:
        "logs/environment/{family}.log",
    conda:
        "../../envs/core.yaml"
    params:
        folder=lambda wildcards: f"resources/environments/{wildcards.family}",
    message:
        "Building the environment of {wildcards.family}, which can take minutes"
    shell:
        "python -m claimbench environment --lock {input.lock:q} --folder {params.folder:q} --output {output:q}"
        " 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"
