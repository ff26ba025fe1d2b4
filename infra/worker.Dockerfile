# What all parts of a fleet run: docker build -f infra/worker.Dockerfile -t ziplora .
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 ziplora
WORKDIR /opt/ziplora
COPY pyproject.toml constraints.txt LICENSE README.md ./
COPY catalog catalog
COPY flows flows
COPY ziplora ziplora
RUN pip install --no-cache-dir -c constraints.txt ".[gpu,postgres,s3]"

USER ziplora
WORKDIR /home/ziplora
# Signals reach ziplora itself, which ends its workers.
CMD ["ziplora", "worker"]
