# input: nothing but parameters (the digest is of the whole plan, studies and machine included)
# output: results/plan/<digest>.json, and no other plan beside it
# steps: write every cell, its key, the files of its results, and the claims about it
#
# The digest in the name tells a plan that a clone brought along, of another machine say, from the one to report on:
# Snakemake compares parameters only with those of a run that was here.


rule plan:
    output:
        FLOW.plan_json,
    log:
        "logs/plan.log",
    conda:
        "../../envs/core.yaml"
    params:
        params=lambda wildcards: as_argument(FLOW.params_json),  # a string's own {1..4} would be taken for a wildcard
        studies=FLOW.studies,
        digest=FLOW.digest,
    message:
        "Writing the plan"
    shell:
        "python -m claimbench plan --params {params.params:q} --studies {params.studies:q}"
        " --digest {params.digest} --output {output:q} 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"
