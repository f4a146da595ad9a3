# input: nothing but parameters (the digest is of the whole plan, studies and machine included)
# output: results/plan.json
# steps: write every cell, its key, the files of its results, and the claims about it


rule plan:
    output:
        "results/plan.json",
    log:
        "logs/plan.log",
    conda:
        "../../envs/core.yaml"
    params:
        params=FLOW.params_json,
        studies=str(FLOW.studies),
        digest=FLOW.digest,
    shell:
        "python -m claimbench plan --params {params.params:q} --studies {params.studies:q}"
        " --digest {params.digest} --output {output:q} 2> {log:q} || {{ cat {log:q} >&2; exit 1; }}"
