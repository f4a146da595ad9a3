# input: the plan, the table, the verdicts and the ceilings: JSON and a table, no model and no GPU
# output: reports/report.md with its figures, metrics and plots
# steps: render


rule report:
    input:
        plan="results/plan.json",
        table="results/table.parquet",
        verdicts="results/verdicts.json",
        ceilings=ancient(FLOW.ceilings),
    output:
        markdown="reports/report.md",
        metrics="reports/metrics.json",
        figures=directory("reports/figures"),
        plots=directory("reports/plots"),
    log:
        "logs/report.log",
    conda:
        "../../envs/core.yaml"
    params:
        folder=lambda wildcards, output: str(Path(output.markdown).parent),
    shell:
        "python -m claimbench report --plan {input.plan:q} --table {input.table:q} --verdicts {input.verdicts:q}"
        " --ceilings {input.ceilings:q} --output {params.folder:q} 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"
