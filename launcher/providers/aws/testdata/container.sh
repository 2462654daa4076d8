#!/bin/bash
# Joins the Finecut cluster llama-00000000. Nothing here is secret.
set -euo pipefail
# The dead-man timer comes first: whatever fails below, this node ends, and with it its bill. The agent winds it up.
shutdown -P +20 "finecut: nothing was heard from the launcher"
home=${FINECUT_HOME:-/opt/finecut}
mkdir -p /mnt/finecut "$home/code"
mountpoint -q /mnt/finecut || mount -t nfs4 -o nfsvers=4.1,hard,timeo=600,noresvport fs-1.efs.us-east-1.amazonaws.com:/ /mnt/finecut
aws s3 cp --only-show-errors s3://code/finecut/bundle.tar.gz "$home/bundle.tar.gz"
tar -xzf "$home/bundle.tar.gz" -C "$home/code"
mkdir -p "$home/host"
[ -p "$home/host/shutdown" ] || mkfifo "$home/host/shutdown"
cat > "$home/host/shutdown.sh" <<'END'
#!/bin/sh
IFS="	"; printf '%s\n' "$*" > /run/finecut/shutdown
END
chmod +x "$home/host/shutdown.sh"
while true; do
  IFS=$'\t' read -r -a words < "$home/host/shutdown" && shutdown "${words[@]}" || sleep 1
done &
aws ecr get-login-password --region us-east-1 | docker login --username AWS --password-stdin 123456789012.dkr.ecr.us-east-1.amazonaws.com
docker pull --quiet 123456789012.dkr.ecr.us-east-1.amazonaws.com/team/train@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
devices=()
for device in /dev/infiniband/uverbs*; do if [ -e "$device" ]; then devices+=(--device "$device"); fi; done
exec docker run --rm --init --gpus all --network host --ipc host --ulimit memlock=-1 --ulimit stack=67108864 \
  --cap-add SYSLOG --device /dev/kmsg "${devices[@]}" \
  --volume /mnt/finecut:/mnt/finecut --volume "$home/code:/opt/finecut/code:ro" --volume "$home/host:/run/finecut" \
  --volume "$home/host/shutdown.sh:/usr/local/sbin/shutdown:ro" \
  --env PYTHONPATH=/opt/finecut/code --entrypoint /opt/finecut/bin/python 123456789012.dkr.ecr.us-east-1.amazonaws.com/team/train@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa -m finecut.launcher.node.agent --cluster=llama-00000000 --region=us-east-1 --gpus=8 --efa_cards=32 --cpus=192 --role=train --dead_man_minutes=20
