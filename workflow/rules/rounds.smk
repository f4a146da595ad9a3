# input: the manifests of what the cells load
# output: results/decided/<plan>.json, which lists the rounds in results/rounds with their seals
# steps: rounds of cells in turn, until every claim is settled or the budget is spent
#
# Rounds are not declared: Snakemake deletes what a job declares before it runs it, and a job that was killed goes on with
# the rounds that are there. Who raises the budget, or edits a study, adds rounds to them.


rule rounds:
    input:
        FLOW.in_rounds,
        plan=FLOW.plan_json,
    output:
        update("results/decided/{plan_digest}.json"),
    log:
        "logs/rounds/{plan_digest}.log",
    conda:
        "../../envs/core.yaml"
    threads: FLOW.cores
    resources:
        bench_slot=1,
        slurm_extra="--exclusive",
        gpu=FLOW.gpus,
    message:
        "Measuring in rounds until the claims are settled"
    shell:
        "python -m claimbench rounds --plan {input.plan:q} --folder results/rounds --output {output:q}"
        " 2>&1 | tee {log:q} >&2"
