"""An Airflow DAG that maps what is new every month; for Airflow 3, in its DAGs folder."""

from datetime import UTC, datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    "landseg_batch", schedule="0 3 2 * *", start_date=datetime(2026, 1, 1, tzinfo=UTC), catchup=False, max_active_runs=1
):
    # Exit code 5, some scenes failed, fails the task. Retries are landseg's own.
    BashOperator(
        task_id="map_what_is_new",
        bash_command="/opt/landseg/.venv/bin/landseg batch /opt/landseg/pipelines/monthly.yaml --log-json",
        retries=0,
    )
