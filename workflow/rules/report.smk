# input: the plan, the table, the verdicts and the ceilings: JSON and a table, no model and no GPU
# output: report.md, report.html, their figures, metrics, plots and provenance.json, in reports/
# steps: render
#
# A report that someone else rendered, or that was edited, is newer than every result here: `foreign` is newer than it.

RENDERS = FLOW.code(
    "reporting.report", libraries=["jinja2", "markdown-it-py", "matplotlib"]
)


rule report:
    input:
        plan=FLOW.plan_json,
        table="results/table.parquet",
        verdicts="results/verdicts.json",
        ceilings=FLOW.ceilings,
        decided=FLOW.decided,
        foreign=foreign(Path("reports"), FLOW.digest, RENDERS),
    output:
        markdown=report(
            "reports/report.md",
            caption="../report/markdown.rst",
            category="Report",
        ),
        page="reports/report.html",
        metrics=report(
            "reports/metrics.json",
            caption="../report/metrics.rst",
            category="Report",
        ),
        provenance="reports/provenance.json",
        figures=report(
            directory("reports/figures"),
            patterns=["{name}.svg"],
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{name}"},
        ),
        plots=report(
            directory("reports/plots"),
            patterns=["{name}.csv"],
            caption="../report/plot.rst",
            category="Tables",
            labels={"table": "{name}"},
        ),
    log:
        "logs/report.log",
    conda:
        "../../envs/core.yaml"
    params:
        code=RENDERS,
        rounds=lambda wildcards, input: (
            f"--rounds {input.decided}" if FLOW.decided else ""
        ),
        folder=lambda wildcards, output: str(Path(output.markdown).parent),
    message:
        "Rendering reports/report.md and reports/report.html"
    shell:
        "python -m claimbench report --plan {input.plan:q} --table {input.table:q} --verdicts {input.verdicts:q}"
        " --ceilings {input.ceilings:q} {params.rounds} --code {params.code} --output {params.folder:q}"
        " 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"
