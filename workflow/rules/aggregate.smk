# input: every result of the plan
# output: one tidy row per cell, block and sample, as parquet and as CSV
# steps: verify that each result is sealed and belongs to the plan, derive the metrics


rule aggregate:
    input:
        results=FLOW.results,
        decided=FLOW.decided,
        plan=FLOW.plan_json,
        ceilings=FLOW.ceilings,
    output:
        parquet="results/table.parquet",
        csv=report(
            "results/table.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "every sample"},
        ),
    log:
        "logs/aggregate.log",
    conda:
        "../../envs/core.yaml"
    params:
        rounds=lambda wildcards, input: (
            f"--rounds {input.decided}" if FLOW.decided else ""
        ),
        code=FLOW.code("analysis.table_file", libraries=["pandas", "pyarrow"]),
    message:
        "Gathering all results into one table"
    shell:
        "python -m claimbench aggregate --plan {input.plan:q} --ceilings {input.ceilings:q} {params.rounds}"
        " --parquet {output.parquet:q} --csv {output.csv:q} 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"
