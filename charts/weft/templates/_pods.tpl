{{/* The Deployment of a component. Takes root and component; every component's file calls it. */}}
{{- define "weft.deployment" -}}
{{- $root := .root }}
{{- $component := .component }}
{{- $own := index $root.Values $component }}
{{- $hpa := dig "autoscaling" "enabled" false $own }}
{{- $pod := include "weft.podValues" . | fromYaml }}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "weft.metadata" . | nindent 2 }}
spec:
  {{- if not $hpa }}
  replicas: {{ int $own.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  selector:
    matchLabels:
      {{- include "weft.selectorLabels" . | nindent 6 }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      {{- if ne $component "trainer" }}
      maxSurge: {{ int $own.maxSurge }}
      maxUnavailable: {{ int $own.maxUnavailable }}
      {{- else if eq $own.launcher "kubernetes" }}
      # A new controller waits for the lead, ready, before an old one goes.
      maxSurge: 1
      maxUnavailable: 0
      {{- else }}
      # Ranks are the old controller's own processes: a second one could only wait for their end.
      maxSurge: 0
      maxUnavailable: 1
      {{- end }}
  template:
    metadata:
      labels:
        {{- include "weft.labels" . | nindent 8 }}
        {{- with $pod.labels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        checksum/config: {{ include "weft.settings" . | sha256sum }}
        {{- with $pod.annotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- include "weft.podSpec" (dict "root" $root "component" $component "own" $own "pod" $pod) | nindent 6 }}
{{- end }}

{{/* The common `pod` with the keys of the component's own in place of its. Takes root and component. */}}
{{- define "weft.podValues" -}}
{{- $merged := deepCopy .root.Values.pod }}
{{- range $key, $value := (index .root.Values .component).pod }}
{{- $_ := set $merged $key $value }}
{{- end }}
{{- toYaml $merged }}
{{- end }}

{{/* Takes root, component, own (its values) and pod (what is merged of `pod`). */}}
{{- define "weft.podSpec" -}}
{{- $values := .root.Values }}
{{- $hasModels := has .component (list "activations" "attribution") }}
{{- $bucketAuthority := and (ne .component "console") (include "weft.bucketAuthority" $values) }}
{{- $speaksToApi := and (eq .component "trainer") (eq $values.trainer.launcher "kubernetes") }}
serviceAccountName: {{ include "weft.serviceAccountName" . }}
automountServiceAccountToken: {{ $speaksToApi }}
{{- include "weft.podScheduling" . }}
terminationGracePeriodSeconds: {{ include "weft.graceSeconds" . }}
securityContext:
  {{- include "weft.podSecurity" $values | nindent 2 }}
{{- if and $hasModels (not $values.models.persistentVolumeClaim) }}
initContainers:
  {{- include "weft.modelsContainer" . | nindent 2 }}
{{- end }}
containers:
  - name: {{ .component }}
    {{- if eq .component "activations" }}
    image: {{ include "weft.activationsImage" .root | quote }}
    {{- else }}
    image: {{ include "weft.image" (dict "root" .root "image" .own.image) | quote }}
    {{- end }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    ports:
      {{- if eq .component "console" }}
      - {name: http, containerPort: 8080}
      {{- else }}
      - {name: grpc, containerPort: 50051}
      {{- end }}
      - {name: metrics, containerPort: 9090}
      {{- if eq .component "trainer" }}
      - {name: reports, containerPort: 50052}
      {{- end }}
    envFrom:
      - configMapRef: {name: {{ include "weft.componentName" . }}}
    env:
      - {name: HOME, value: /tmp}
      {{- if $speaksToApi }}
      - name: WEFT_TRAINER_KUBERNETES_POD
        valueFrom: {fieldRef: {fieldPath: metadata.name}}
      {{- end }}
      {{- include "weft.secrets" . | nindent 6 }}
      {{- with .pod.env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- include "weft.probes" $values | nindent 4 }}
    {{- if ne .component "trainer" }}
    lifecycle:
      preStop:
        sleep: {seconds: {{ int $values.shutdown.preStopSeconds }}}
    {{- end }}
    {{- with include "weft.resources" .own }}
    resources:
      {{- . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- include "weft.containerSecurity" . | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      {{- if $values.tls.enabled }}
      - {name: tls, mountPath: /etc/weft/tls, readOnly: true}
      {{- end }}
      {{- if $bucketAuthority }}
      - {name: bucket-ca, mountPath: /etc/weft/bucket-ca, readOnly: true}
      {{- end }}
      {{- if $hasModels }}
      - name: models
        mountPath: /models
        readOnly: true
        {{- with $values.models.subPath }}
        subPath: {{ . | quote }}
        {{- end }}
      {{- end }}
      {{- with .pod.volumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {sizeLimit: {{ .pod.tmpSizeLimit }}}
  {{- if $values.tls.enabled }}
  - {{- include "weft.tlsVolume" $values | nindent 4 }}
  {{- end }}
  {{- if $bucketAuthority }}
  - {{- $bucketAuthority | nindent 4 }}
  {{- end }}
  {{- if and $hasModels $values.models.persistentVolumeClaim }}
  - name: models
    persistentVolumeClaim: {claimName: {{ $values.models.persistentVolumeClaim }}, readOnly: true}
  {{- else if $hasModels }}
  - name: models
    emptyDir: {sizeLimit: {{ $values.models.sizeLimit }}}
  {{- end }}
  {{- with .pod.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Where a pod may run, and who pulls its images. Takes root, component and pod. */}}
{{- define "weft.podScheduling" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- $default := dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway" }}
{{- $selector := dict "matchLabels" (include "weft.selectorLabels" . | fromYaml) }}
topologySpreadConstraints:
  {{- range default (list $default) .pod.topologySpreadConstraints }}
  - {{- toYaml (mergeOverwrite (dict "labelSelector" $selector) .) | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Copies or fetches models into the volume of that name. Takes root, component and own. */}}
{{- define "weft.modelsContainer" -}}
{{- $values := .root.Values }}
{{- $models := $values.models }}
{{- $bucketAuthority := and $models.bucketPrefix (include "weft.bucketAuthority" $values) }}
- name: models
  image: {{ include "weft.activationsImage" .root | quote }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  command: [python, -m, weft_activations.fetch, /models]
  args:
    {{- with $models.bucketPrefix }}
    - --bucket-prefix={{ . }}
    {{- end }}
    {{- range $models.hub }}
    - --hub={{ .name }}={{ .repository }}@{{ .revision }}
    {{- end }}
  env:
    - {name: HOME, value: /tmp}
    {{- if $models.bucketPrefix }}
    - {name: WEFT_ACTIVATIONS_BUCKET_URL, value: {{ $values.bucket.url | quote }}}
    {{- if $bucketAuthority }}
    - {name: WEFT_ACTIVATIONS_BUCKET_CA, value: /etc/weft/bucket-ca/ca.crt}
    {{- end }}
    {{- include "weft.bucketKeys" (dict "root" .root "component" "activations") | nindent 4 }}
    {{- end }}
    {{- with $models.hubToken }}
    {{- if .existingSecret }}
    - name: HF_TOKEN
      valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}}
    {{- end }}
    {{- end }}
  {{- with .own.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "weft.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: models, mountPath: /models}
    {{- if $bucketAuthority }}
    - {name: bucket-ca, mountPath: /etc/weft/bucket-ca, readOnly: true}
    {{- end }}
{{- end }}

{{/* Requests and limits of a component, its GPU included. Takes its values. */}}
{{- define "weft.resources" -}}
{{- $resources := deepCopy .resources }}
{{- if dig "gpu" "enabled" false . }}
{{- $limits := mergeOverwrite (default dict $resources.limits) (dict .gpu.resource 1) }}
{{- $_ := set $resources "limits" $limits }}
{{- end }}
{{- with $resources }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{/*
From the request to stop to the kill: the pause, the drain, and time to close. A controller makes no pause, since the
next one can only lead once it has gone; one with ranks of its own gives them time to save. Takes root, component, own.
*/}}
{{- define "weft.graceSeconds" -}}
{{- $shutdown := .root.Values.shutdown }}
{{- $first := $shutdown.preStopSeconds }}
{{- if eq .component "trainer" }}
{{- $first = ternary (dig "settings" "stop_grace_s" 6 .own) 0 (eq .own.launcher "local") }}
{{- end }}
{{- add (int (ceil $first)) (int (ceil .own.drainSeconds)) (int (ceil $shutdown.closeSeconds)) }}
{{- end }}

{{/* The pod's part of Pod Security's restricted level. Takes the values. */}}
{{- define "weft.podSecurity" -}}
runAsNonRoot: true
{{- range $key, $value := .user }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }}: {{ int $value }}
{{- end }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* The container's part of it, and a file system that cannot be written. */}}
{{- define "weft.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The volume with certificate, key and authority, always under the same names. Takes the values. */}}
{{- define "weft.tlsVolume" -}}
name: tls
secret:
  secretName: {{ .tls.existingSecret }}
  defaultMode: 0440
  items:
    - {key: {{ .tls.keys.certificate }}, path: tls.crt}
    - {key: {{ .tls.keys.privateKey }}, path: tls.key}
    - {key: {{ .tls.keys.authority }}, path: ca.crt}
{{- end }}

{{/* The volume with the bucket's authority; empty where images trust the bucket. Takes the values. */}}
{{- define "weft.bucketAuthority" -}}
{{- $ca := .bucket.ca }}
{{- $items := printf "items: [{key: %s, path: ca.crt}]" $ca.key }}
{{- if $ca.existingSecret -}}
name: bucket-ca
secret:
  secretName: {{ $ca.existingSecret }}
  defaultMode: 0440
  {{ $items }}
{{- else if $ca.existingConfigMap -}}
name: bucket-ca
configMap:
  name: {{ $ca.existingConfigMap }}
  {{ $items }}
{{- end }}
{{- end }}

{{/* Over plain HTTP on the port of the metrics, so that TLS stays on for gRPC. Takes the values. */}}
{{- define "weft.probes" -}}
{{- $timing := printf "periodSeconds: %d\ntimeoutSeconds: %d" (int .probes.periodSeconds) (int .probes.timeoutSeconds) }}
startupProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 2
  timeoutSeconds: {{ int .probes.timeoutSeconds }}
  failureThreshold: {{ div (add (int .probes.startupSeconds) 1) 2 }}
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  {{- $timing | nindent 2 }}
  failureThreshold: {{ int .probes.readinessFailures }}
livenessProbe:
  httpGet: {path: /livez, port: metrics}
  {{- $timing | nindent 2 }}
  failureThreshold: {{ int .probes.livenessFailures }}
{{- end }}
