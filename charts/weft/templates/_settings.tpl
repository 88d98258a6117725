{{/*
What services are told that is no secret, as the data of their ConfigMaps. One template a component; `weft.settings`
adds what all have in common.
*/}}

{{/* A value as text; numbers of Helm are floating, and 1e+08 is no byte count. */}}
{{- define "weft.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}
{{- int64 . }}
{{- else if kindIs "slice" . }}
{{- toJson . }}
{{- else }}
{{- . }}
{{- end }}
{{- end }}

{{/* All settings of a component. Takes root and component. */}}
{{- define "weft.settings" -}}
{{- $values := .root.Values }}
{{- $own := index $values .component }}
{{- $prefix := printf "WEFT_%s" (upper .component) }}
{{ $prefix }}_HOST: "0.0.0.0"
{{ $prefix }}_PORT: {{ ternary "8080" "50051" (eq .component "console") | quote }}
{{ $prefix }}_METRICS_PORT: "9090"
{{ $prefix }}_LOG_LEVEL: {{ $values.logging.level | quote }}
{{ $prefix }}_LOG_FORMAT: {{ $values.logging.format | quote }}
{{ $prefix }}_DRAIN_S: {{ include "weft.text" $own.drainSeconds | quote }}
{{- with $values.tracing.otlpEndpoint }}
{{ $prefix }}_OTLP_ENDPOINT: {{ . | quote }}
{{- end }}
{{- if $values.tls.enabled }}
{{ $prefix }}_TLS_CERT: /etc/weft/tls/tls.crt
{{ $prefix }}_TLS_KEY: /etc/weft/tls/tls.key
{{- if ne .component "cache" }}
{{ $prefix }}_PEERS_TLS_CA: /etc/weft/tls/ca.crt
{{- end }}
{{- if $values.tls.mutual }}
{{- if ne .component "console" }}
{{ $prefix }}_TLS_CLIENT_CA: /etc/weft/tls/ca.crt
{{- end }}
{{- if ne .component "cache" }}
{{ $prefix }}_PEERS_TLS_CERT: /etc/weft/tls/tls.crt
{{ $prefix }}_PEERS_TLS_KEY: /etc/weft/tls/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- if ne .component "console" }}
{{ $prefix }}_BUCKET_URL: {{ $values.bucket.url | quote }}
{{- if include "weft.bucketAuthority" $values }}
{{ $prefix }}_BUCKET_CA: /etc/weft/bucket-ca/ca.crt
{{- end }}
{{- end }}
{{- include (printf "weft.settings.%s" .component) .root }}
{{- range $name, $value := $own.settings }}
{{ $prefix }}_{{ upper $name }}: {{ include "weft.text" $value | quote }}
{{- end }}
{{- end }}

{{- define "weft.settings.activations" }}
WEFT_ACTIVATIONS_MODELS_DIR: /models
WEFT_ACTIVATIONS_DEVICE: {{ ternary "cuda" "cpu" .Values.activations.gpu.enabled }}
WEFT_ACTIVATIONS_CACHE_TARGET: {{ include "weft.target" (dict "root" . "component" "cache") }}
{{- end }}

{{- define "weft.settings.cache" }}
{{- end }}

{{- define "weft.settings.trainer" }}
{{- $ranks := .Values.trainer.ranks }}
WEFT_TRAINER_CACHE_TARGET: {{ include "weft.target" (dict "root" . "component" "cache") }}
{{- if .Values.activations.enabled }}
WEFT_TRAINER_ACTIVATIONS_TARGET: {{ include "weft.target" (dict "root" . "component" "activations") }}
{{- end }}
WEFT_TRAINER_REPORT_PORT: "50052"
{{- if eq .Values.trainer.launcher "kubernetes" }}
WEFT_TRAINER_REPORT_HOST: "0.0.0.0"
{{- end }}
WEFT_TRAINER_LAUNCHER: {{ .Values.trainer.launcher }}
{{- if eq .Values.trainer.launcher "kubernetes" }}
{{- $suffix := ternary $ranks.gpu.tagSuffix "" $ranks.gpu.enabled }}
{{- $image := include "weft.image" (dict "root" . "image" .Values.trainer.image "suffix" $suffix) }}
WEFT_TRAINER_RANK_DEVICE: {{ ternary "cuda" "cpu" $ranks.gpu.enabled }}
WEFT_TRAINER_KUBERNETES_NAMESPACE: {{ .Release.Namespace }}
WEFT_TRAINER_KUBERNETES_LEASE: {{ include "weft.componentName" (dict "root" . "component" "trainer") }}
WEFT_TRAINER_KUBERNETES_RANK_KIND: {{ $ranks.kind }}
WEFT_TRAINER_KUBERNETES_RANK_IMAGE: {{ default $image $ranks.image | quote }}
WEFT_TRAINER_KUBERNETES_RANK_IMAGE_PULL_POLICY: {{ .Values.image.pullPolicy }}
WEFT_TRAINER_KUBERNETES_PULL_SECRETS: {{ toJson .Values.image.pullSecrets | quote }}
WEFT_TRAINER_KUBERNETES_RANK_RESOURCES: {{ include "weft.resources" $ranks | fromYaml | toJson | quote }}
WEFT_TRAINER_KUBERNETES_NODE_SELECTOR: {{ toJson $ranks.nodeSelector | quote }}
WEFT_TRAINER_KUBERNETES_TOLERATIONS: {{ toJson $ranks.tolerations | quote }}
{{- with $ranks.runtimeClassName }}
WEFT_TRAINER_KUBERNETES_RUNTIME_CLASS: {{ . | quote }}
{{- end }}
{{- with $ranks.queue }}
WEFT_TRAINER_KUBERNETES_QUEUE: {{ . | quote }}
{{- end }}
{{- $labels := include "weft.labels" (dict "root" . "component" "rank") | fromYaml }}
WEFT_TRAINER_KUBERNETES_POD_LABELS: {{ mergeOverwrite (deepCopy $ranks.labels) $labels | toJson | quote }}
WEFT_TRAINER_KUBERNETES_POD_ANNOTATIONS: {{ toJson $ranks.annotations | quote }}
WEFT_TRAINER_KUBERNETES_SERVICE_ACCOUNT: {{ include "weft.rankServiceAccountName" . }}
WEFT_TRAINER_KUBERNETES_AUTH_SECRET: {{ .Values.auth.existingSecret | quote }}
WEFT_TRAINER_KUBERNETES_CACHE_TOKEN_KEY: {{ .Values.auth.keys.cache | quote }}
{{- if .Values.activations.enabled }}
WEFT_TRAINER_KUBERNETES_ACTIVATIONS_TOKEN_KEY: {{ .Values.auth.keys.activations | quote }}
{{- end }}
WEFT_TRAINER_KUBERNETES_REPORT_TOKEN_KEY: {{ .Values.auth.keys.reports | quote }}
WEFT_TRAINER_KUBERNETES_BUCKET_SECRET: {{ .Values.bucket.existingSecret | quote }}
WEFT_TRAINER_KUBERNETES_ACCESS_KEY_KEY: {{ .Values.bucket.keys.accessKey | quote }}
WEFT_TRAINER_KUBERNETES_SECRET_KEY_KEY: {{ .Values.bucket.keys.secretKey | quote }}
{{- $ca := .Values.bucket.ca }}
{{- with $ca.existingSecret }}
WEFT_TRAINER_KUBERNETES_BUCKET_CA_SECRET: {{ . | quote }}
{{- end }}
{{- with $ca.existingConfigMap }}
WEFT_TRAINER_KUBERNETES_BUCKET_CA_CONFIG_MAP: {{ . | quote }}
{{- end }}
{{- if include "weft.bucketAuthority" .Values }}
WEFT_TRAINER_KUBERNETES_BUCKET_CA_KEY: {{ $ca.key | quote }}
{{- end }}
{{- if .Values.tls.enabled }}
WEFT_TRAINER_KUBERNETES_TLS_SECRET: {{ .Values.tls.existingSecret | quote }}
{{- end }}
{{- $service := include "weft.componentName" (dict "root" . "component" "trainer") }}
WEFT_TRAINER_KUBERNETES_REPORTS_SERVICE: {{ printf "%s.%s.svc:50052" $service .Release.Namespace }}
{{- end }}
{{- end }}

{{- define "weft.settings.attribution" }}
WEFT_ATTRIBUTION_MODELS_DIR: /models
WEFT_ATTRIBUTION_ACTIVATIONS_TARGET: {{ include "weft.target" (dict "root" . "component" "activations") }}
WEFT_ATTRIBUTION_CACHE_TARGET: {{ include "weft.target" (dict "root" . "component" "cache") }}
{{- with .Values.attribution.interpreter }}
{{- if .url }}
WEFT_ATTRIBUTION_INTERPRETER_URL: {{ .url | quote }}
WEFT_ATTRIBUTION_INTERPRETER_MODEL: {{ .model | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "weft.settings.console" }}
{{- $name := include "weft.componentName" (dict "root" . "component" "console") }}
{{- $hosts := list "127.0.0.1" "localhost" "[::1]" $name (printf "%s.%s" $name .Release.Namespace) }}
{{- $hosts = append $hosts (printf "%s.%s.svc" $name .Release.Namespace) }}
{{- if .Values.console.ingress.enabled }}
{{- $hosts = concat $hosts .Values.console.ingress.hosts }}
{{- end }}
WEFT_CONSOLE_ALLOWED_HOSTS: {{ concat $hosts .Values.console.allowedHosts | uniq | toJson | quote }}
{{- range $peer := list "activations" "cache" "trainer" "attribution" }}
WEFT_CONSOLE_{{ upper $peer }}_TARGET: {{ include "weft.target" (dict "root" $ "component" $peer) }}
{{- end }}
{{- end }}

{{/* Secrets of a component as environment variables. Takes root and component. */}}
{{- define "weft.secrets" -}}
{{- $prefix := printf "WEFT_%s" (upper .component) }}
{{- $auth := .root.Values.auth }}
{{- $peers := dict "activations" (list "cache") "trainer" (list "cache") "attribution" (list "activations" "cache") }}
{{- $_ := set $peers "console" (list "activations" "cache" "trainer" "attribution") }}
{{- /* Ranks in pods get the token from the Secret themselves. */}}
{{- if and .root.Values.activations.enabled (eq .root.Values.trainer.launcher "local") }}
{{- $_ := set $peers "trainer" (list "cache" "activations") }}
{{- end }}
- name: {{ $prefix }}_TOKEN
  valueFrom: {secretKeyRef: {name: {{ $auth.existingSecret }}, key: {{ index $auth.keys .component }}}}
{{- range $peer := index $peers .component }}
- name: {{ $prefix }}_{{ upper $peer }}_TOKEN
  valueFrom: {secretKeyRef: {name: {{ $auth.existingSecret }}, key: {{ index $auth.keys $peer }}}}
{{- end }}
{{- if eq .component "trainer" }}
- name: {{ $prefix }}_REPORT_TOKEN
  valueFrom: {secretKeyRef: {name: {{ $auth.existingSecret }}, key: {{ $auth.keys.reports }}}}
{{- end }}
{{- $interpreter := .root.Values.attribution.interpreter }}
{{- if and (eq .component "attribution") $interpreter.existingSecret }}
- name: {{ $prefix }}_INTERPRETER_KEY
  valueFrom: {secretKeyRef: {name: {{ $interpreter.existingSecret }}, key: {{ $interpreter.key }}}}
{{- end }}
{{- if ne .component "console" }}
{{ include "weft.bucketKeys" . }}
{{- end }}
{{- end }}

{{/* The bucket's keys. Takes root and component. */}}
{{- define "weft.bucketKeys" -}}
{{- $bucket := .root.Values.bucket }}
- name: WEFT_{{ upper .component }}_BUCKET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ $bucket.existingSecret }}, key: {{ $bucket.keys.accessKey }}}}
- name: WEFT_{{ upper .component }}_BUCKET_SECRET_KEY
  valueFrom: {secretKeyRef: {name: {{ $bucket.existingSecret }}, key: {{ $bucket.keys.secretKey }}}}
{{- end }}
