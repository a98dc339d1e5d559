"""Runtime: do the workers get on, what do they hold, and what do they cost."""

from __future__ import annotations

from deploy.grafana.promql import (
    in_time_shown,
    median_and_p99,
    per_minute,
    per_second,
)
from deploy.grafana.style import Dashboard, Kind, Limits, Panel, Query, Row, Variable

CHOSEN = 'service=~"$service", instance=~"$instance"'
PROCESS = f'job="ratestream", {CHOSEN}'
_NAME = "{{service}} {{instance}}"

PROGRESS = Row(
    "Do they get on?",
    (
        Panel(
            title="Records not read yet, by service and topic",
            shows="Lag over all partitions of the topic.",
            normal="Close to 0, and back there soon after a burst.",
            otherwise="Growing in one service: it is too slow or stands still. More instances "
            "help, up to one for each partition.",
            runbook="lag-growing",
            unit="short",
            no_data="No service reads records",
            queries=(
                Query(
                    f"sum by (service, topic) (ratestream_consumer_lag_records{{{CHOSEN}}})",
                    "{{service}} {{topic}}",
                ),
            ),
        ),
        Panel(
            title="The partition that is furthest behind",
            shows="The largest lag of one partition, by topic.",
            normal="Close to 0.",
            otherwise="One partition behind while the others are not: a key with most of the "
            "records, or an instance that hangs.",
            runbook="lag-growing",
            unit="short",
            no_data="No service reads records",
            queries=(
                Query(
                    f"topk by (service, topic) (1, ratestream_consumer_lag_records{{{CHOSEN}}})",
                    "{{service}} {{topic}} {{partition}}",
                ),
            ),
        ),
        Panel(
            title="Records per second",
            shows="Read and sent by each service, changelogs included.",
            normal="As steady as the sources.",
            otherwise="Read but not sent: look for dead letters. Neither, with lag: it stands "
            "still.",
            runbook="no-committed-progress",
            unit="recps",
            no_data="No service reads or sends records",
            queries=(
                Query(
                    per_second("ratestream_records_in_total", "service", CHOSEN),
                    "{{service}} read",
                ),
                Query(
                    per_second("ratestream_records_out_total", "service", CHOSEN),
                    "{{service}} sent",
                ),
            ),
        ),
        Panel(
            title="Commits per second",
            shows="How often each service commits what it has done.",
            normal="Up to 10 with the default runtime.commit_interval; as often as records come "
            "when they come seldom. 0 for services that read nothing.",
            otherwise="0 with lag: it does not get on.",
            runbook="no-committed-progress",
            unit="ops",
            no_data="No service is there",
            queries=(
                Query(
                    per_second("ratestream_commit_seconds_count", "service", CHOSEN), "{{service}}"
                ),
            ),
        ),
        Panel(
            title="Time without progress",
            shows="Since each instance last committed, restored, or had nothing to do; what it "
            "waits for by name does not count.",
            normal="Seconds at most.",
            otherwise="It runs in circles. Above half of runtime.progress_timeout it is not ready, "
            "above all of it it ends, to be started again.",
            runbook="no-committed-progress",
            width=8,
            unit="s",
            limits=Limits(warning=10, critical=150),
            no_data="No service is there",
            queries=(
                Query(
                    f"max by (service, instance) (ratestream_progress_age_seconds{{{CHOSEN}}})",
                    _NAME,
                ),
            ),
        ),
        Panel(
            title="Transactions per minute, by result",
            shows="Kafka transactions of the services that work exactly once.",
            normal="Up to 600 `committed` with the default runtime.commit_interval; none `failed`, "
            "but for a few when Kafka or a neighbour goes away.",
            otherwise="`failed` again and again: what was done in them is undone and done again. "
            "`setback` and `broker_failed` in the log say why.",
            runbook="setbacks-repeating",
            width=8,
            unit="cpm",
            no_data="No service works exactly once",
            queries=(
                Query(
                    per_minute("ratestream_transactions_total", "service, result", CHOSEN),
                    "{{service}} {{result}}",
                ),
            ),
        ),
        Panel(
            title="How long does a commit take?",
            shows="From the first output sent to the state written.",
            normal="Below 0.1 s.",
            otherwise="Kafka or the disk is slow.",
            runbook="no-committed-progress",
            width=8,
            unit="s",
            limits=Limits(warning=1, critical=10),
            no_data="Nothing was committed",
            queries=median_and_p99("ratestream_commit_seconds", "service", CHOSEN),
        ),
        Panel(
            title="How large are the batches?",
            shows="Records of one poll.",
            normal="Small when little arrives; thousands while a backlog is worked off.",
            otherwise="Always at runtime.batch_max_records: the service is at its limit.",
            runbook="lag-growing",
            width=8,
            unit="short",
            no_data="Nothing was read",
            queries=median_and_p99("ratestream_batch_size_records", "service", CHOSEN),
        ),
        Panel(
            title="How long does a batch take?",
            shows="Time that the agents took for one poll; db_loader waits for Postgres in it.",
            normal="Below a second.",
            otherwise="Above half a second fetching is paused; what an agent has not done within "
            "runtime.drain_timeout when partitions move is dropped and read again.",
            runbook="lag-growing",
            width=8,
            unit="s",
            limits=Limits(warning=5, critical=60),
            no_data="Nothing was read",
            queries=median_and_p99("ratestream_batch_seconds", "service", CHOSEN),
        ),
    ),
)

GROUP = Row(
    "Who has what?",
    (
        Panel(
            title="Broker reached by",
            shows="1 while the instance reaches Kafka, or does not need it.",
            normal="1.",
            otherwise="All at 0: Kafka is away. One at 0: its network, or its credentials.",
            runbook="broker-unreachable",
            kind=Kind.NUMBER,
            width=8,
            unit="none",
            limits=Limits(critical=1, low=True),
            no_data="No service is there",
            queries=(Query(f"ratestream_broker_up{{{CHOSEN}}}", _NAME),),
        ),
        Panel(
            title="Assigned partitions",
            shows="Partitions that each instance works on.",
            normal="Shared evenly. One data_requester has all partitions of its group or the "
            "first of them: that one asks the sources.",
            otherwise="An instance with 0: there are more instances than partitions. All with 0: "
            "nobody does this service's work.",
            runbook="no-partitions",
            width=8,
            unit="none",
            no_data="No service is there",
            queries=(
                Query(
                    f"sum by (service, instance) (ratestream_assigned_partitions{{{CHOSEN}}})",
                    _NAME,
                ),
            ),
        ),
        Panel(
            title="Rebalances per minute",
            shows="Times that partitions were shared out anew, by service; and times that an "
            "instance lost its own because it was believed dead.",
            normal="0 but for starts, stops and scaling.",
            otherwise="Again and again: instances die, or stand still for longer than "
            "runtime.session_timeout.",
            runbook="no-committed-progress",
            width=8,
            unit="cpm",
            no_data="No service had partitions yet",
            queries=(
                Query(
                    per_minute(
                        "ratestream_rebalances_total", "service", f'{CHOSEN}, kind="assigned"'
                    ),
                    "{{service}}",
                ),
                Query(
                    per_minute("ratestream_rebalances_total", where=f'{CHOSEN}, kind="lost"'),
                    "partitions lost",
                ),
            ),
        ),
    ),
)

STATE = Row(
    "What do they hold?",
    (
        Panel(
            title="Partitions being restored",
            shows="Tables that are filled from their changelog before work goes on.",
            normal="0, for seconds more after a start or rebalance.",
            otherwise="For minutes: a long changelog, or Kafka is slow.",
            runbook="no-committed-progress",
            width=8,
            unit="none",
            no_data="No service is there",
            queries=(
                Query(
                    f"sum by (service) (ratestream_restoring_partitions{{{CHOSEN}}})",
                    "{{service}}",
                ),
            ),
        ),
        Panel(
            title="Records still to be restored",
            shows="Changelog records still to be read, at most, before work goes on.",
            normal="0. After a start or a rebalance it falls to 0 at the pace of the panel beside "
            "it.",
            otherwise="It does not fall: Kafka gives nothing. It is large at every rebalance: "
            "runtime.standby keeps copies ready.",
            runbook="no-committed-progress",
            width=8,
            unit="short",
            no_data="No service is there",
            queries=(
                Query(
                    "sum by (service, instance) "
                    f"(ratestream_restore_remaining_records{{{CHOSEN}}})",
                    _NAME,
                ),
            ),
        ),
        Panel(
            title="Records restored per second",
            shows="Changelog records read to restore tables.",
            normal="0.",
            otherwise="0 while partitions are being restored: Kafka gives nothing.",
            runbook="no-committed-progress",
            width=8,
            unit="recps",
            no_data="No service has a table",
            queries=(
                Query(
                    per_second("ratestream_restored_records_total", "service, table", CHOSEN),
                    "{{service}} {{table}}",
                ),
            ),
        ),
        Panel(
            title="State size",
            shows="What tables take on disk, as RocksDB estimates it; 0 until it has written a "
            "file.",
            normal="Grows with pairs and sources, not with time.",
            otherwise="Growing with time: more keys than there are pairs.",
            runbook="disk-filling",
            width=8,
            unit="bytes",
            no_data="No service has a table",
            queries=(
                Query(
                    f"sum by (service, instance, table) (ratestream_table_bytes{{{CHOSEN}}})",
                    f"{_NAME} {{{{table}}}}",
                ),
            ),
        ),
        Panel(
            title="Entries of tables",
            shows="Keys that each instance holds, copies included, as RocksDB estimates it.",
            normal="As many as there are pairs and sources, shared among the instances.",
            otherwise="Growing with time: more keys than there are pairs.",
            runbook="disk-filling",
            width=8,
            unit="short",
            no_data="No service has a table",
            queries=(
                Query(
                    f"sum by (service, instance, table) (ratestream_table_entries{{{CHOSEN}}})",
                    f"{_NAME} {{{{table}}}}",
                ),
            ),
        ),
        Panel(
            title="Tables rebuilt in the time shown",
            shows="Partitions of tables that could not be trusted, and were rebuilt from the "
            "changelog.",
            normal="0. Once for each partition after an upgrade that changes the format.",
            otherwise="Again and again: the disk loses what was written to it. `table_rebuilt` in "
            "the log has the reason.",
            runbook="service-restarting",
            kind=Kind.NUMBER,
            width=8,
            unit="short",
            limits=Limits(warning=1),
            no_data="No service has a table",
            queries=(
                Query(
                    in_time_shown("ratestream_table_rebuilds_total", "service, table", CHOSEN),
                    "{{service}} {{table}}",
                ),
            ),
        ),
        Panel(
            title="How far are standby copies behind?",
            shows="Changelog records that copies of the other instances' tables do not have yet, "
            "at most; 0 without runtime.standby.",
            normal="Close to 0.",
            otherwise="Growing: the instance has too much to do of its own. A takeover then "
            "restores that much first.",
            runbook="lag-growing",
            width=8,
            unit="short",
            no_data="No service is there",
            queries=(
                Query(
                    f"sum by (service, instance) (ratestream_standby_lag_records{{{CHOSEN}}})",
                    _NAME,
                ),
            ),
        ),
    ),
)

TROUBLE = Row(
    "What goes wrong?",
    (
        Panel(
            title="Ready",
            shows="1 while /health/ready of the instance answers 200.",
            normal="1.",
            otherwise="`ratestream doctor`, or /health/ready itself, says what it waits for.",
            runbook="service-not-ready",
            kind=Kind.NUMBER,
            width=8,
            unit="none",
            limits=Limits(critical=1, low=True),
            no_data="No service is there",
            queries=(Query(f"ratestream_ready{{{CHOSEN}}}", _NAME),),
        ),
        Panel(
            title="Restarts in the time shown",
            shows="Times that each service was started again.",
            normal="0.",
            otherwise="The end of the log of the run before says why.",
            runbook="service-restarting",
            kind=Kind.NUMBER,
            width=8,
            unit="none",
            limits=Limits(warning=1, critical=3),
            no_data="No service is there",
            queries=(
                Query(
                    "sum by (service) "
                    f"(changes(ratestream_start_timestamp_seconds{{{CHOSEN}}}[$__range]))",
                    "{{service}}",
                ),
            ),
        ),
        Panel(
            title="Up for",
            shows="Time since each instance was last started.",
            normal="Since you started it.",
            otherwise="Less: it was started again.",
            runbook="service-restarting",
            kind=Kind.NUMBER,
            width=8,
            unit="s",
            no_data="No service is there",
            queries=(Query(f"time() - ratestream_start_timestamp_seconds{{{CHOSEN}}}", _NAME),),
        ),
        Panel(
            title="Retries per minute",
            shows="Times the worker started over after the broker failed it.",
            normal="0.",
            otherwise="Kafka is away or fails: `broker_failed` in the log has its words.",
            runbook="broker-unreachable",
            unit="cpm",
            no_data="No service is there",
            queries=(
                Query(
                    per_minute("ratestream_worker_retries_total", "service", CHOSEN), "{{service}}"
                ),
            ),
        ),
        Panel(
            title="Setbacks per minute",
            shows="Times that what was not committed was dropped, to be read again: a transaction "
            "was aborted, partitions were lost, or an agent is to be tried again.",
            normal="0, but for one now and then when instances come or go.",
            otherwise="Again and again: `setback` in the log has the reason each time.",
            runbook="setbacks-repeating",
            unit="cpm",
            no_data="No service is there",
            queries=(
                Query(per_minute("ratestream_setbacks_total", "service, instance", CHOSEN), _NAME),
            ),
        ),
        Panel(
            title="Agent errors in the time shown",
            shows="Times an agent raised, and what it did was to be tried again or put aside. One "
            "that stops its service is a restart instead.",
            normal="0.",
            otherwise="The log names the record and has the error: a defect, or something that "
            "the agent needs is away.",
            runbook="setbacks-repeating",
            kind=Kind.NUMBER,
            unit="short",
            limits=Limits(warning=1),
            no_data="No service has an agent",
            queries=(
                Query(
                    in_time_shown("ratestream_agent_errors_total", "service, agent", CHOSEN),
                    "{{service}} {{agent}}",
                ),
            ),
        ),
        Panel(
            title="Timer ticks left out per minute",
            shows="Ticks left out because the run before took longer than the interval.",
            normal="0.",
            otherwise="The timer's work is too slow: a source that answers late, or Postgres.",
            runbook="source-failing",
            unit="cpm",
            no_data="No service has a timer",
            queries=(
                Query(
                    per_minute("ratestream_timer_skipped_ticks_total", "service, timer", CHOSEN),
                    "{{service}} {{timer}}",
                ),
            ),
        ),
    ),
)

COST = Row(
    "What do they cost?",
    (
        Panel(
            title="Memory",
            shows="Resident memory of each process that runs one service alone.",
            normal="Steady after some minutes, well below the container's limit.",
            otherwise="Growing for hours: the container will be killed at its limit.",
            runbook="service-restarting",
            width=8,
            unit="bytes",
            no_data="No service runs as a process of its own on Linux",
            queries=(Query(f"process_resident_memory_bytes{{{PROCESS}}}", _NAME),),
        ),
        Panel(
            title="CPU",
            shows="Processor cores in use.",
            normal="Far below 1: a service's Python uses one core at most.",
            otherwise="Near 1 with lag: add an instance.",
            runbook="lag-growing",
            width=8,
            unit="percentunit",
            limits=Limits(warning=0.9),
            no_data="No service runs as a process of its own on Linux",
            queries=(
                Query(f"rate(process_cpu_seconds_total{{{PROCESS}}}[$__rate_interval])", _NAME),
            ),
        ),
        Panel(
            title="File descriptors in use",
            shows="Share of those that the process may open.",
            normal="A few per cent.",
            otherwise="Near all of them connections fail.",
            runbook="service-restarting",
            width=8,
            unit="percentunit",
            maximum=1,
            limits=Limits(warning=0.7, critical=0.9),
            no_data="No service runs as a process of its own on Linux",
            queries=(
                Query(f"process_open_fds{{{PROCESS}}} / process_max_fds{{{PROCESS}}}", _NAME),
            ),
        ),
        Panel(
            title="Disk free",
            shows="Share of the file system of data_dir that is free.",
            normal="More than a fifth.",
            otherwise="Without space nothing is committed.",
            runbook="disk-filling",
            unit="percentunit",
            maximum=1,
            limits=Limits(warning=0.2, critical=0.1, low=True),
            no_data="No service is there",
            queries=(
                Query(
                    f"min by (service) (ratestream_disk_free_bytes{{{CHOSEN}}}"
                    f" / ratestream_disk_size_bytes{{{CHOSEN}}})",
                    "{{service}}",
                ),
            ),
        ),
        Panel(
            title="Certificates end in",
            shows="Time until each certificate of the settings expires.",
            normal="More than three weeks.",
            otherwise="Put a new certificate in its place and start the services again.",
            runbook="certificate-expiring",
            kind=Kind.NUMBER,
            unit="s",
            limits=Limits(warning=21 * 86_400, critical=3 * 86_400, low=True),
            no_data="No certificate is configured",
            queries=(
                Query(
                    "min by (service, certificate) "
                    f"(ratestream_certificate_expiry_timestamp_seconds{{{CHOSEN}}}) - time()",
                    "{{service}} {{certificate}}",
                ),
            ),
        ),
    ),
)

BOARD = Dashboard(
    "ratestream-runtime",
    "ratestream: Runtime",
    "Do the workers get on, what do they hold, and what do they cost; of every service alike.",
    (PROGRESS, GROUP, STATE, TROUBLE, COST),
    (
        Variable("service", "ratestream_start_timestamp_seconds"),
        Variable("instance", 'ratestream_start_timestamp_seconds{service=~"$service"}'),
    ),
)
