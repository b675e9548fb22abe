#!/usr/bin/env bash
# Sets up .venv if it is missing or out of date (scripts/setup.sh), then runs the tests.
# Usage: scripts/test.sh [options of pytest]
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

set_up "test"
exec "$python" -m pytest "$@"
