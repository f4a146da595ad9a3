"""The command line: `claimbench`, or `python -m claimbench`. The commands are in commands/, a file each."""

from __future__ import annotations

import os
import sys

from claimbench.commands import parser
from claimbench.errors import ClaimbenchError, ConfigError, disk_trouble

BROKEN_PIPE, INTERRUPTED = 141, 130
"""Exit statuses, as a shell counts them: 128 and the number of the signal."""


def main(arguments: list[str] | None = None) -> int:
    from claimbench.system.redaction import guard_last_resort, redact

    given = sys.argv[1:] if arguments is None else arguments
    try:
        if not given:
            parser.make(given).print_help()
            return ConfigError.exit_status
        parsed = parser.make(given).parse_args(given)
        guard_last_resort()
        status: int | None = parsed.run(parsed)
        sys.stdout.flush()
        return status or 0
    except ClaimbenchError as error:
        from claimbench.schema.lines import located

        print(f"claimbench: {located(redact(str(error)))}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes at its end
        return BROKEN_PIPE
    except OSError as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        print(f"claimbench: {redact(trouble)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
