# Makes the plan from the configuration; a mistake in it ends here with one message and no traceback.

import sys

from snakemake.exceptions import WorkflowError

from claimbench.errors import ClaimbenchError
from claimbench.workflow import Workflow, as_json


try:
    FLOW = Workflow(config, Path(workflow.basedir) / "studies")
except ClaimbenchError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    cell=r"[0-9a-f]{12}",
    key=r"[0-9a-f]{12}",
    block=r"\d+",
    name=r"[a-z0-9][a-z0-9._-]*",
    source=r"[0-9a-f]{12}",


PYTHON = sys.executable
