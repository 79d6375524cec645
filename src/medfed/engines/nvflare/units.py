"""systemd units for a site's and a coordinator's service: start at boot, start again, and as little access as they need."""

import sys
from pathlib import Path

_UNIT = """\
# Written by medfed. Copy to /etc/systemd/system/, then: systemctl enable --now {unit}
[Unit]
Description=medfed {what}
After=network-online.target
Wants=network-online.target

[Service]
Type=simple
User={user}
EnvironmentFile={environment}
ExecStart={python} -u -m {module} {folder}
Restart=always
RestartSec=5
KillMode=control-group
TimeoutStopSec=30
UMask=0077
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ReadWritePaths={folder}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""

_ENVIRONMENT = """\
# Environment of the medfed {what}. Readable by its owner only; no secret needs to stand here.
# The most memory that one study's step process may take, in GB (empty: no limit of medfed's):
MEDFED_STEP_MEMORY_GB=
# Language of messages: en or zh
MEDFED_LANG=en
"""


def site_unit(folder: Path, name: str, user: str) -> dict[str, str]:
    """File name -> text: the unit and the environment file of a site's service."""
    return _files(f"medfed-site-{name}", f"site {name}", folder, user, "medfed.engines.nvflare.site_service")


def coordinator_unit(folder: Path, name: str, user: str) -> dict[str, str]:
    """File name -> text: the unit and the environment file of a coordinator's service."""
    return _files(
        f"medfed-coordinator-{name}",
        f"coordinator of {name}",
        folder,
        user,
        "medfed.engines.nvflare.coordinator_service",
    )


def _files(unit: str, what: str, folder: Path, user: str, module: str) -> dict[str, str]:
    text = _UNIT.format(
        unit=f"{unit}.service", what=what, user=user, environment=folder / f"{unit}.env", python=sys.executable,
        module=module, folder=folder,
    )  # fmt: skip
    return {f"{unit}.service": text, f"{unit}.env": _ENVIRONMENT.format(what=what)}
