{{/* What the names of all objects begin with; short enough for the longest ending. */}}
{{- define "weft.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Name of a component's objects. Takes root and component. */}}
{{- define "weft.componentName" -}}
{{- printf "%s-%s" (include "weft.fullname" .root) .component }}
{{- end }}

{{/* What selects a component's pods; must never change. Takes root and component. */}}
{{- define "weft.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of every object of a component. Takes root and component. */}}
{{- define "weft.labels" -}}
{{ include "weft.selectorLabels" . }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Metadata of an object that bears the component's name. Takes root and component. */}}
{{- define "weft.metadata" -}}
name: {{ include "weft.componentName" . }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "weft.labels" . | nindent 2 }}
{{- end }}

{{/* Image of a component: by digest, else by tag. Takes root, image and, if any, the ending of the default tag. */}}
{{- define "weft.image" -}}
{{- $name := printf "%s/%s" .root.Values.image.registry .image.repository }}
{{- if .image.digest }}
{{- printf "%s@%s" $name .image.digest }}
{{- else if .image.tag }}
{{- printf "%s:%s" $name .image.tag }}
{{- else }}
{{- printf "%s:%s%s" $name (default .root.Chart.AppVersion .root.Values.image.tag) (default "" .suffix) }}
{{- end }}
{{- end }}

{{/* Image of the activations service, which also copies and fetches models. */}}
{{- define "weft.activationsImage" -}}
{{- $own := .Values.activations }}
{{- include "weft.image" (dict "root" . "image" $own.image "suffix" (ternary $own.gpu.tagSuffix "" $own.gpu.enabled)) }}
{{- end }}

{{/* host:port of a service, as its certificate names it. Takes root and component. */}}
{{- define "weft.target" -}}
{{- printf "%s.%s.svc:50051" (include "weft.componentName" .) .root.Release.Namespace }}
{{- end }}

{{/* Account of a component's pods. Takes root and component. */}}
{{- define "weft.serviceAccountName" -}}
{{- $own := (index .root.Values .component).serviceAccount }}
{{- default (include "weft.componentName" .) $own.name }}
{{- end }}

{{/* Account of ranks, which has no rights. */}}
{{- define "weft.rankServiceAccountName" -}}
{{- include "weft.componentName" (dict "root" . "component" "rank") }}
{{- end }}
