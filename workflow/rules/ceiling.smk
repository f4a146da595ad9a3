# input: nothing but this machine
# output: results/ceilings/<machine>-<device>.json
# steps: measure read bandwidth and matrix rate, alone on the device


rule ceiling:
    output:
        FLOW.ceilings,
    log:
        "logs/ceiling.log",
    conda:
        "../../envs/core.yaml"
    threads: FLOW.cores
    resources:
        bench_slot=1,
        slurm_extra="--exclusive",
    params:
        code=FLOW.code("measuring.ceiling", libraries=["torch"]),
        device=FLOW.plan.device,
        machine=FLOW.plan.machine["key"],
    message:
        "Measuring this machine's limits: read bandwidth and matrix rate"
    shell:
        "python -m claimbench ceiling --device {params.device} --machine {params.machine} --output {output:q}"
        " 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"
