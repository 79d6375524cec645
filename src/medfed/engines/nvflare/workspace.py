"""The folders that NVFLARE's processes read: certificates, addresses, what may run there and what may be logged.

As strict as NVFLARE allows: only the dispatcher job's two classes may be made, no job may bring code, the coordinator's
administrator may submit and stop that one job and look at states, and nothing of a site's logs is sent to anybody.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfed.canonical import private_folder, write_atomically
from medfed.engines.nvflare.certificates import ADMIN, Pair
from medfed.engines.nvflare.consortium import CoordinatorAddress

RELAYS = "medfed.engines.nvflare.relay"
CONTROLLER = "nvflare.collab.runtime.controller.CollabController"
EXECUTOR = "nvflare.collab.runtime.executor.CollabExecutor"
SERVER_SOCKET, SITE_SOCKET = "relay", "door"

# Every role, the coordinator's administrator included: no code in jobs, no shell, no shutting down of sites.
_NOTHING = {
    "submit_job": "none", "clone_job": "none", "manage_job": "none", "download_job": "none", "view": "none",
    "operate": "none", "shell_commands": "none", "byoc": "none", "server-predeployed-flwr": "none",
}  # fmt: skip
_AUTHORIZATION = {
    "format_version": "1.0",
    "permissions": {
        "project_admin": {**_NOTHING, "submit_job": "any", "manage_job": "any", "view": "any"},
        "org_admin": _NOTHING,
        "lead": _NOTHING,
        "member": _NOTHING,
    },
}
# Each finished stream leaves a thread for this long; the default of 60 s is thousands of threads under load.
_COMMUNICATION = {"streaming_retry_timeout": 10.0, "allow_adhoc_conns": False, "tcp_no_delay": True}
_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "plain": {
            "()": "nvflare.fuel.utils.log_utils.BaseFormatter",
            "fmt": "%(asctime)s %(name)s %(levelname)s %(message)s",
        }
    },
    "handlers": {
        "file": {
            "class": "logging.handlers.RotatingFileHandler",
            "level": "DEBUG",
            "formatter": "plain",
            "filename": "log.txt",
            "mode": "a",
            "maxBytes": 5_000_000,
            "backupCount": 3,
        }
    },
    "loggers": {"root": {"level": "WARNING", "handlers": ["file"]}},
}


def write_server(folder: Path, project: str, address: CoordinatorAddress, pair: Pair, root: bytes) -> None:
    """The server's workspace."""
    startup = private_folder(folder / "startup")
    pair.write(startup, "server")
    write_atomically(startup / "rootCA.pem", root)
    _json(
        startup / "fed_server.json",
        {
            "format_version": 2,
            "servers": [
                {
                    "name": project,
                    "service": {
                        "target": f"{address.listen_on or '0.0.0.0'}:{address.port}",
                        "scheme": address.scheme,
                    },
                    "admin_server": address.host,
                    "admin_port": address.port,
                    "ssl_private_key": "server.key",
                    "ssl_cert": "server.crt",
                    "ssl_root_cert": "rootCA.pem",
                    "connection_security": "mtls",
                }
            ],
        },
    )
    absolute = folder.resolve()
    resources = {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [CONTROLLER, f"{RELAYS}.CoordinatorRelay"],
        "servers": [
            {"admin_storage": "transfer", "max_num_clients": 1000, "heart_beat_timeout": 30, "admin_timeout": 10.0}
        ],
        "snapshot_persistor": {
            "path": "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor",
            "args": {
                "uri_root": "/",
                "storage": {
                    "path": "nvflare.app_common.storages.filesystem_storage.FilesystemStorage",
                    "args": {"root_dir": str(absolute / "snapshots"), "uri_root": "/"},
                },
            },
        },
        "components": [
            {
                "id": "job_scheduler",
                "path": "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
                "args": {"max_jobs": 4, "min_schedule_interval": 0.5, "max_schedule_interval": 2.0},
            },
            {
                "id": "job_manager",
                "path": "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
                "args": {"uri_root": str(absolute / "jobs"), "job_store_id": "job_store"},
            },
            {"id": "job_store", "path": "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"},
            {
                "id": "process_launcher",
                "path": "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher",
                "args": {},
            },
            {"id": "medfed_guard", "path": "medfed.engines.nvflare.guard.RegistrationGuard", "args": {}},
        ],
    }
    _local(folder, resources)


def write_admin(folder: Path, project: str, address: CoordinatorAddress, pair: Pair, root: bytes) -> None:
    """The kit with which the coordinator's supervisor submits and stops the dispatcher job."""
    startup = private_folder(folder / "startup")
    pair.write(startup, "client")
    write_atomically(startup / "rootCA.pem", root)
    _json(
        startup / "fed_admin.json",
        {
            "format_version": 1,
            "admin": {
                "project_name": project,
                "username": ADMIN,
                "server_identity": address.host,
                "scheme": address.scheme,
                "host": address.listen_on or address.host,
                "port": address.port,
                "connection_security": "mtls",
                "uid_source": "user_input",
                "with_file_transfer": True,
                "upload_dir": "transfer",
                "download_dir": "transfer",
                "client_key": "client.key",
                "client_cert": "client.crt",
                "ca_cert": "rootCA.pem",
            },
        },
    )
    local = private_folder(folder / "local")
    private_folder(folder / "transfer")
    _json(
        local / "resources.json",
        {
            "format_version": 1,
            "admin": {
                "idle_timeout": 86400.0,
                "login_timeout": 10.0,
                "with_debug": False,
                "authenticate_msg_timeout": 5.0,
                "prompt": "> ",
            },
        },
    )


def write_site(folder: Path, site: str, project: str, *, host: str, port: int, scheme: str) -> None:
    """A site's workspace, without its certificate (``write_certificate``)."""
    startup = private_folder(folder / "startup")
    _json(
        startup / "fed_client.json",
        {
            "format_version": 2,
            "servers": [{"name": project, "service": {"target": f"{host}:{port}", "scheme": scheme}, "identity": host}],
            "client": {
                "ssl_private_key": "client.key",
                "ssl_cert": "client.crt",
                "ssl_root_cert": "rootCA.pem",
                "fqsn": site,
                "is_leaf": True,
                "connection_security": "mtls",
            },
        },
    )
    resources = {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [EXECUTOR, f"{RELAYS}.SiteRelay"],
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30, "compression": "None", "client_register_interval": 1.0},
        "components": [
            {
                "id": "resource_manager",
                "path": "nvflare.app_common.resource_managers.gpu_resource_manager.GPUResourceManager",
                "args": {"num_of_gpus": 0, "mem_per_gpu_in_GiB": 0, "expiration_period": 300},
            },
            {
                "id": "resource_consumer",
                "path": "nvflare.app_common.resource_consumers.gpu_resource_consumer.GPUResourceConsumer",
                "args": {},
            },
            {
                "id": "process_launcher",
                "path": "nvflare.app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher",
                "args": {},
            },
            {"id": "medfed_token", "path": "medfed.engines.nvflare.guard.RegistrationToken", "args": {}},
        ],
    }
    _local(folder, resources)


def write_certificate(folder: Path, pair: Pair, root: bytes) -> None:
    """A site's certificate, its key and the consortium's root."""
    startup = private_folder(folder / "startup")
    pair.write(startup, "client")
    write_atomically(startup / "rootCA.pem", root)


def write_job(folder: Path) -> None:
    """The dispatcher job: two objects of the installed package, no code of its own."""
    _json(
        folder / "meta.json",
        {"name": "medfed", "resource_spec": {}, "min_clients": 1, "deploy_map": {"app": ["@ALL"]}},
    )
    config = folder / "app" / "config"
    _json(
        config / "config_fed_server.json",
        {
            "format_version": 2,
            "workflows": [
                {
                    "id": "controller",
                    "path": CONTROLLER,
                    "args": {"server_obj_id": "relay", "collab_obj_ids": [], "sync_task_timeout": 20},
                }
            ],
            "components": [{"id": "relay", "path": f"{RELAYS}.CoordinatorRelay", "args": {"at": SERVER_SOCKET}}],
            "task_data_filters": [],
            "task_result_filters": [],
        },
    )
    _json(
        config / "config_fed_client.json",
        {
            "format_version": 2,
            "executors": [
                {"tasks": ["*"], "executor": {"id": "executor", "path": EXECUTOR, "args": {"client_obj_id": "relay"}}}
            ],
            "components": [{"id": "relay", "path": f"{RELAYS}.SiteRelay", "args": {"at": SITE_SOCKET}}],
            "task_data_filters": [],
            "task_result_filters": [],
        },
    )


def _local(folder: Path, resources: Mapping[str, Any]) -> None:
    local = private_folder(folder / "local")
    private_folder(folder / "transfer")
    _json(local / "resources.json", resources)
    _json(local / "authorization.json", _AUTHORIZATION)
    _json(local / "comm_config.json", _COMMUNICATION)
    _json(local / "log_config.json", _LOGGING)
    _json(local / "privacy.json", {"scopes": [], "default_scope": ""})


def _json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1).encode(), mode=0o600)
