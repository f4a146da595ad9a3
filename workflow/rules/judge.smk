# input: the table, and what searches for frontiers found
# output: results/verdicts.json
# steps: a verdict with its interval for every claim of every study


rule judge:
    input:
        table="results/table.parquet",
        plan=FLOW.plan_json,
        frontiers=FLOW.frontiers,
    output:
        "results/verdicts.json",
    log:
        "logs/judge.log",
    conda:
        "../../envs/core.yaml"
    params:
        code=FLOW.code(
            "judging.judge", "judging.checks.*", libraries=["numpy", "scipy"]
        ),
    message:
        "Judging every claim"
    shell:
        "python -m claimbench judge --plan {input.plan:q} --table {input.table:q} --output {output:q}"
        " 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"
